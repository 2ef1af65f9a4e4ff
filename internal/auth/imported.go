package auth

import (
	"encoding/binary"
	"regexp"
	"slices"
)

// Imported knows the keys that were made elsewhere and imported: the patterns
// they were declared with, and which fingerprints are theirs. It is immutable;
// nil knows none.
type Imported struct {
	patterns []string
	find     []*regexp.Regexp
	base     []uint64 // sorted
	extra    []uint64 // sorted, and small, so that adding to it costs little
}

// maxExtra is how many fingerprints are added before they join the others.
const maxExtra = 1 << 16

// NewImported returns what finds keys by patterns (RE2, not anchored) that
// compile, among sums, which it keeps and sorts; see Sum.
func NewImported(patterns []string, sums []uint64) (*Imported, error) {
	m := &Imported{patterns: patterns, base: sums}
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, Invalidf("a key pattern: %v", err)
		}
		re.Longest()
		m.find = append(m.find, re)
	}
	slices.Sort(m.base)
	return m, nil
}

// Sum is the part of a fingerprint that Imported remembers. Two keys have the
// same by chance in one of 2^64 cases, and then cost a lookup.
func Sum(fp Fingerprint) uint64 { return binary.BigEndian.Uint64(fp[:]) }

// Patterns are what it was made with. Callers must not change it.
func (m *Imported) Patterns() []string {
	if m == nil {
		return nil
	}
	return m.patterns
}

// With returns one that knows fps too.
func (m *Imported) With(fps []Fingerprint) *Imported {
	next := *m
	sums := make([]uint64, 0, len(fps))
	for _, fp := range fps {
		sums = append(sums, Sum(fp))
	}
	slices.Sort(sums)
	next.extra = merge(m.extra, sums)
	if len(next.extra) > maxExtra {
		next.base, next.extra = merge(m.base, next.extra), nil
	}
	return &next
}

// merge returns the numbers of two sorted lists, each once.
func merge(a, b []uint64) []uint64 {
	out := make([]uint64, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		var n uint64
		if len(b) == 0 || len(a) > 0 && a[0] <= b[0] {
			n, a = a[0], a[1:]
		} else {
			n, b = b[0], b[1:]
		}
		if k := len(out); k == 0 || out[k-1] != n {
			out = append(out, n)
		}
	}
	return out
}

// Has reports whether a fingerprint is an imported key's.
func (m *Imported) Has(fp Fingerprint) bool {
	if m == nil {
		return false
	}
	if _, ok := slices.BinarySearch(m.base, Sum(fp)); ok {
		return true
	}
	_, ok := slices.BinarySearch(m.extra, Sum(fp))
	return ok
}

// Len is how many keys there are.
func (m *Imported) Len() int {
	if m == nil {
		return 0
	}
	return len(m.base) + len(m.extra)
}

// maxCandidates is how many texts that overlap others of the same form one Find
// looks at.
const maxCandidates = 128

// Find returns a text in s that is an imported key, the first of its pattern.
// What looks like one and is none, such as any UUID, is not found. One that is
// glued to more characters of its kind may be found or not.
func (m *Imported) Find(s string) (start, end int, ok bool) {
	if m.Len() == 0 {
		return 0, 0, false
	}
	left := maxCandidates
	for _, re := range m.find {
		for at := 0; at < len(s); {
			loc := re.FindStringIndex(s[at:])
			if loc == nil {
				break
			}
			from, to := at+loc[0], at+loc[1]
			if m.Has(FingerprintOf(s[from:to])) {
				return from, to, true
			}
			at = max(to, from+1)
			if left > 0 && (from > 0 && wordByte(s[from-1]) || to < len(s) && wordByte(s[to])) {
				left--
				at = from + 1 // another of its form may begin inside it
			}
		}
	}
	return 0, 0, false
}

func wordByte(c byte) bool { return IsBase62(c) || c == '_' || c == '-' }
