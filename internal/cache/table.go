package cache

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// table maps fingerprints to byte records without a pointer per entry, so the
// collector passes over a million of them. It is a hash index of entry
// numbers, a slice of entries, and records cut into fixed blocks. When it is
// full, the clock algorithm chooses what goes: an entry used since the hand
// last passed gets another round. Its owner locks it.
type table struct {
	seed    maphash.Seed
	most    int
	index   []uint32 // entry number + 1, 0: free; open addressing, power of two long
	entries []entry
	free    []uint32 // entry numbers
	hand    int
	live    int

	blocks    [][]byte // chunks of blocksPerChunk blocks
	freeBlock uint32   // first free block + 1, chained through the blocks
	blockEnd  uint32   // blocks handed out so far
	evicted   func(*entry)
}

type entry struct {
	fp      auth.Fingerprint
	expires int64 // milliseconds on the tier's clock
	notAfter,
	usedAt int64 // unix milliseconds; usedAt is 0 when there is nothing to write
	parents [len(auth.Parents{})]uint32
	first   uint32 // first block
	size    uint16
	used    bool // since the hand passed
	taken   bool
	foreign bool // not of this store: nobody writes down when it was used
}

const (
	blockSize      = 64
	blockLink      = 4
	blockBytes     = blockSize - blockLink
	blocksPerChunk = 128
)

func newTable(seed maphash.Seed, most int, evicted func(*entry)) *table {
	return &table{seed: seed, most: max(most, 1), evicted: evicted}
}

func (t *table) hash(fp *auth.Fingerprint) uint64 { return maphash.Bytes(t.seed, fp[:]) }

// find returns the entry for fp, or nil.
func (t *table) find(fp *auth.Fingerprint) *entry {
	if len(t.index) == 0 {
		return nil
	}
	mask := uint64(len(t.index) - 1)
	for i := t.hash(fp) & mask; t.index[i] != 0; i = (i + 1) & mask {
		if e := &t.entries[t.index[i]-1]; e.fp == *fp {
			return e
		}
	}
	return nil
}

// put stores record for fp, replacing what was there.
func (t *table) put(fp *auth.Fingerprint, record []byte, e entry) {
	if old := t.find(fp); old != nil {
		t.remove(fp)
	}
	if len(record) > 1<<16-1 {
		return
	}
	for t.live >= t.most {
		t.evict()
	}
	if (t.live+1)*4 > len(t.index)*3 {
		t.grow()
	}
	var n uint32
	if k := len(t.free); k > 0 {
		n, t.free = t.free[k-1], t.free[:k-1]
	} else {
		t.entries = append(t.entries, entry{})
		n = uint32(len(t.entries) - 1)
	}
	e.fp, e.size, e.taken, e.used = *fp, uint16(len(record)), true, false
	e.first = t.writeBlocks(record)
	t.entries[n] = e
	t.link(fp, n)
	t.live++
}

func (t *table) link(fp *auth.Fingerprint, n uint32) {
	mask := uint64(len(t.index) - 1)
	i := t.hash(fp) & mask
	for t.index[i] != 0 {
		i = (i + 1) & mask
	}
	t.index[i] = n + 1
}

func (t *table) grow() {
	size := max(16, 2*len(t.index))
	t.index = make([]uint32, size)
	for n := range t.entries {
		if t.entries[n].taken {
			t.link(&t.entries[n].fp, uint32(n))
		}
	}
}

// remove drops the entry for fp and reports whether there was one.
func (t *table) remove(fp *auth.Fingerprint) bool {
	if len(t.index) == 0 {
		return false
	}
	mask := uint64(len(t.index) - 1)
	i := t.hash(fp) & mask
	for {
		if t.index[i] == 0 {
			return false
		}
		if t.entries[t.index[i]-1].fp == *fp {
			break
		}
		i = (i + 1) & mask
	}
	n := t.index[i] - 1
	t.freeBlocks(&t.entries[n])
	t.entries[n] = entry{}
	t.free = append(t.free, n)
	t.live--
	// Close the gap: move back every following entry that may stand here.
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		home := t.hash(&t.entries[t.index[j]-1].fp) & mask
		if (j-home)&mask >= (j-i)&mask {
			t.index[i] = t.index[j]
			i = j
		}
	}
	t.index[i] = 0
	return true
}

func (t *table) evict() {
	for {
		if t.hand >= len(t.entries) {
			t.hand = 0
		}
		e := &t.entries[t.hand]
		t.hand++
		if !e.taken {
			continue
		}
		if e.used {
			e.used = false
			continue
		}
		if t.evicted != nil {
			t.evicted(e)
		}
		fp := e.fp
		t.remove(&fp)
		return
	}
}

// each calls visit for every entry; visit may not change the table.
func (t *table) each(visit func(*entry)) {
	for i := range t.entries {
		if t.entries[i].taken {
			visit(&t.entries[i])
		}
	}
}

// resized returns a table of another size with the same entries; those used
// lately are the last to go.
func (t *table) resized(most int) *table {
	out := newTable(t.seed, most, t.evicted)
	var buf []byte
	for _, used := range [...]bool{false, true} {
		t.each(func(e *entry) {
			if e.used != used {
				return
			}
			buf = append(buf[:0], make([]byte, e.size)...)
			t.read(e, buf)
			out.put(&e.fp, buf, *e)
			out.find(&e.fp).used = used
		})
	}
	return out
}

// read copies an entry's record to dst, which must be e.size long.
func (t *table) read(e *entry, dst []byte) {
	for n := e.first; len(dst) > 0; {
		b := t.block(n)
		k := copy(dst, b[blockLink:])
		dst = dst[k:]
		n = binary.LittleEndian.Uint32(b) - 1
	}
}

func (t *table) block(n uint32) []byte {
	chunk := t.blocks[n/blocksPerChunk]
	at := int(n%blocksPerChunk) * blockSize
	return chunk[at : at+blockSize : at+blockSize]
}

func (t *table) takeBlock() uint32 {
	if t.freeBlock != 0 {
		n := t.freeBlock - 1
		t.freeBlock = binary.LittleEndian.Uint32(t.block(n))
		return n
	}
	if t.blockEnd%blocksPerChunk == 0 {
		t.blocks = append(t.blocks, make([]byte, blocksPerChunk*blockSize))
	}
	t.blockEnd++
	return t.blockEnd - 1
}

// writeBlocks stores record and returns its first block. Each block begins
// with the number of the next + 1, or 0.
func (t *table) writeBlocks(record []byte) uint32 {
	first := t.takeBlock()
	for n := first; ; {
		b := t.block(n)
		record = record[copy(b[blockLink:], record):]
		if len(record) == 0 {
			binary.LittleEndian.PutUint32(b, 0)
			return first
		}
		next := t.takeBlock()
		binary.LittleEndian.PutUint32(b, next+1)
		n = next
	}
}

// freeBlocks gives an entry's blocks back, wiped.
func (t *table) freeBlocks(e *entry) {
	for n := e.first; ; {
		b := t.block(n)
		next := binary.LittleEndian.Uint32(b)
		clear(b)
		binary.LittleEndian.PutUint32(b, t.freeBlock)
		t.freeBlock = n + 1
		if next == 0 {
			return
		}
		n = next - 1
	}
}
