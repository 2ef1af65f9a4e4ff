package redact

import "slices"

// mostClose is how much of one text, and of all headers of one message together,
// is looked at closely, in bytes. A client chooses what is logged, so the headers
// beyond it that are not plainly harmless are masked as a whole.
const mostClose = 2 << 10

// Block masks the headers of one message. It is not safe for concurrent use.
type Block struct {
	m    *Masker
	left int // bytes that may still be looked at closely

	lookups int // names that may still be looked up
}

// Block begins with the headers of a message.
func (m *Masker) Block() Block { return Block{m, mostClose, blockLookups} }

// Header returns what may be logged of a header field alone; see Block.
func (m *Masker) Header(name string, values []string) (safeName string, safe []string, changed bool) {
	b := m.Block()
	return b.Header(name, values)
}

// Header returns what may be logged of a header field. changed is false if that
// is all of it; then name and values are the ones given.
func (b *Block) Header(name string, values []string) (safeName string, safe []string, changed bool) {
	plain := b.m.known.Load().plain[name]
	if !plain && b.m.Name(name) {
		safe, changed = masked, true // the usual case, without an allocation
		if len(values) != 1 {
			safe = slices.Repeat(masked, len(values))
		}
	} else {
		safe, changed = b.values(values)
	}
	if !plain && !b.m.cleanWithin(name, &b.lookups) && (!b.close(name) || hidesCredential(name)) {
		name, changed = Mark, true
	}
	return name, safe, changed
}

// values returns what may be logged of a header's values: them, or a copy.
func (b *Block) values(values []string) (safe []string, changed bool) {
	safe = values
	for i, v := range values {
		masked := b.m.exact(v)
		if !b.m.cleanWithin(masked, &b.lookups) {
			if b.close(masked) {
				masked = b.m.closely(masked)
			} else {
				masked = Mark
			}
		}
		if len(masked) == len(v) && masked == v {
			continue
		}
		if !changed {
			safe, changed = slices.Clone(values), true
		}
		safe[i] = masked
	}
	return safe, changed
}

// close reports whether there is still room to look at a text closely, and takes
// it.
func (b *Block) close(text string) bool {
	b.left -= len(text)
	return b.left >= 0
}
