package feed

import (
	"cmp"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// history is what a gateway knows of the journal from floor up: the row ids,
// and for each credential and parent the newest change that names it. Its
// owner locks it.
type history struct {
	known    []knownRow // ascending by seq; the first is the floor
	byFP     map[auth.Fingerprint]int64
	byParent map[auth.Parent]int64
}

type knownRow struct {
	seq    int64
	row    auth.RowID
	fps    []auth.Fingerprint
	parent auth.Parent
	seen   time.Time
}

func newHistory() *history {
	return &history{byFP: map[auth.Fingerprint]int64{}, byParent: map[auth.Parent]int64{}}
}

func (h *history) floor() int64 {
	if len(h.known) == 0 {
		return 0
	}
	return h.known[0].seq
}

// remember adds a row above all known ones.
func (h *history) remember(c auth.Change, now time.Time) {
	h.known = append(h.known, knownRow{c.Seq, c.Row, c.Fingerprints, c.Parent, now})
	for _, fp := range c.Fingerprints {
		h.byFP[fp] = c.Seq
	}
	if c.Parent != (auth.Parent{}) {
		h.byParent[c.Parent] = c.Seq
	}
}

// rowAt returns the id of the row at seq, if it is known.
func (h *history) rowAt(seq int64) (auth.RowID, bool) {
	i, ok := slices.BinarySearchFunc(h.known, seq, func(k knownRow, seq int64) int { return cmp.Compare(k.seq, seq) })
	if !ok {
		return auth.RowID{}, false
	}
	return h.known[i].row, true
}

// changedAbove reports whether a change above seq names fp or one of parents.
func (h *history) changedAbove(seq int64, fp auth.Fingerprint, parents auth.Parents) bool {
	if h.byFP[fp] > seq {
		return true
	}
	for _, p := range parents {
		if p != (auth.Parent{}) && h.byParent[p] > seq {
			return true
		}
	}
	return false
}

// forget drops rows that a newer one replaced as the head before before, and
// so raises the floor: what was read at a row may have been read as long as
// that row was the head. Rows from keep up stay.
func (h *history) forget(before time.Time, keep int64) {
	n := 0
	for n < len(h.known)-1 && h.known[n].seq < keep && h.known[n+1].seen.Before(before) {
		k := h.known[n]
		for _, fp := range k.fps {
			if h.byFP[fp] == k.seq {
				delete(h.byFP, fp)
			}
		}
		if h.byParent[k.parent] == k.seq {
			delete(h.byParent, k.parent)
		}
		n++
	}
	h.known = slices.Delete(h.known, 0, n)
}
