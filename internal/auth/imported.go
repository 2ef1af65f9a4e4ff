package auth

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
)

// Imported knows the keys that were made elsewhere and imported: the patterns
// they were declared with, and which fingerprints are theirs. It is immutable;
// nil knows none.
type Imported struct {
	texts    []string
	patterns []*KeyPattern
	base     []uint64 // sorted
	extra    []uint64 // sorted, and small, so that adding to it costs little
}

// maxExtra is how many fingerprints are added before they join the others.
const maxExtra = 1 << 16

// NewImported returns what finds keys of patterns among sums, which it keeps
// and sorts; see Sum. Patterns that it can't read, as those of a later release,
// are returned too: keys of them are known, and not found in texts.
func NewImported(patterns []string, sums []uint64) (m *Imported, unread []string) {
	m = &Imported{texts: patterns, base: sums}
	for _, text := range patterns {
		p, err := ParseKeyPattern(text)
		if err != nil {
			unread = append(unread, text)
			continue
		}
		m.patterns = append(m.patterns, p)
	}
	slices.Sort(m.base)
	return m, unread
}

// Sum is the part of a fingerprint that Imported remembers. Two keys have the
// same by chance in one of 2^64 cases, and then cost a lookup.
func Sum(fp Fingerprint) uint64 { return binary.BigEndian.Uint64(fp[:]) }

// Patterns are what it was made with. Callers must not change it.
func (m *Imported) Patterns() []string {
	if m == nil {
		return nil
	}
	return m.texts
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

// Matches reports whether s has the form of imported keys, whether it is one
// or not.
func (m *Imported) Matches(s string) bool {
	return m != nil && slices.ContainsFunc(m.patterns, func(p *KeyPattern) bool { return p.Match(s) })
}

// Claims reports whether s has the form of imported keys and begins with a
// literal that all of them have, so that it is hardly anything else.
func (m *Imported) Claims(s string) bool {
	return m != nil && slices.ContainsFunc(m.patterns, func(p *KeyPattern) bool { return p.prefix != "" && p.Match(s) })
}

// Len is how many keys there are.
func (m *Imported) Len() int {
	if m == nil {
		return 0
	}
	return len(m.base) + len(m.extra)
}

// Span is a part of a text.
type Span struct{ Start, End int }

// How many texts one search hashes at most: what a request can make us do is
// bounded, whatever it holds.
const (
	maxWords = 2000 // between delimiters
	maxSlide = 500  // inside others
)

// FindAll returns where imported keys are in s, in order, and whether s was
// searched from end to end. What looks like a key and is none, such as any UUID,
// is not found. One that is glued to more characters that such keys can have is
// found if it begins with its pattern's literal, or has the one length there is,
// as far as that does not take long.
func (m *Imported) FindAll(s string) (found []Span, complete bool) {
	if m.Len() == 0 {
		return nil, true
	}
	f := finder{m: m, s: s, left: maxWords}
	for _, p := range m.patterns {
		f.search(p, f.words)
	}
	complete = f.left > 0
	f.left = maxSlide
	for _, p := range m.patterns {
		f.search(p, f.slide)
	}
	slices.SortFunc(f.found, func(a, b Span) int { return cmp.Or(a.Start-b.Start, b.End-a.End) })
	end := 0
	for _, span := range f.found { // one inside another is the other's
		if span.End > end {
			found, end = append(found, span), span.End
		}
	}
	return found, complete
}

type finder struct {
	m     *Imported
	s     string
	left  int
	found []Span
}

// search goes through the runs of characters that keys of a form consist of.
func (f *finder) search(p *KeyPattern, run func(p *KeyPattern, from, to int)) {
	for i := 0; i < len(f.s) && f.left > 0; {
		if !p.alphabet.has(f.s[i]) {
			i++
			continue
		}
		from := i
		for i < len(f.s) && p.alphabet.has(f.s[i]) {
			i++
		}
		if i-from >= max(p.min, 1) {
			run(p, from, i)
		}
	}
}

// words tries what stands between delimiters, from each word's beginning to
// each word's end.
func (f *finder) words(p *KeyPattern, from, to int) {
	for start := from; start < to && f.left > 0; start++ {
		if start > from && !delimiter(f.s[start-1]) || !strings.HasPrefix(f.s[start:to], p.prefix) {
			continue
		}
		for end := min(to, start+p.max); end-start >= max(p.min, 1) && f.left > 0; end-- {
			if (end == to || delimiter(f.s[end]) || delimiter(f.s[end-1])) && f.try(start, end) {
				break
			}
		}
	}
}

// slide tries what may begin and end inside words.
func (f *finder) slide(p *KeyPattern, from, to int) {
	switch {
	case p.prefix != "":
		for at := from; f.left > 0; at++ {
			i := strings.Index(f.s[at:to], p.prefix)
			if i < 0 {
				return
			}
			at += i
			for n := min(p.max, to-at); n >= max(p.min, 1) && f.left > 0 && !f.try(at, at+n); n-- {
			}
		}
	case p.min == p.max:
		for at := from; at+p.min <= to && f.left > 0; at++ {
			f.try(at, at+p.min)
		}
	}
}

func delimiter(b byte) bool { return !IsBase62(b) }

func (f *finder) try(from, to int) bool {
	f.left--
	if !f.m.Has(FingerprintOf(f.s[from:to])) {
		return false
	}
	f.found = append(f.found, Span{from, to})
	return true
}
