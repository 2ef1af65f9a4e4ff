package auth

import (
	"math"
	"regexp/syntax"
	"strings"
)

// MaxImportedLen is the length of the longest imported key.
const MaxImportedLen = 512

// KeyPattern is the form of keys that were made elsewhere: literal characters,
// classes and counts, always of the whole key. It is immutable.
type KeyPattern struct {
	text     string
	parts    []patternPart
	alphabet charSet // every character that a key of this form can have
	prefix   string  // what each begins with
	min, max int     // lengths
	bits     float64
}

// patternPart is a class of characters and how many of them there are.
type patternPart struct {
	class    charSet
	min, max int
}

// charSet is a set of bytes.
type charSet [4]uint64

func (s *charSet) add(b byte)      { s[b/64] |= 1 << (b % 64) }
func (s *charSet) has(b byte) bool { return s[b/64]&(1<<(b%64)) != 0 }

// ParseKeyPattern reads a pattern in the syntax of regular expressions. ^ at
// its beginning and $ at its end mean nothing. Anything but literals, classes
// and counts is ErrInvalid.
func ParseKeyPattern(text string) (*KeyPattern, error) {
	if len(text) > 256 {
		return nil, Invalidf("the pattern is longer than 256 bytes")
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, Invalidf("the pattern: %v", err)
	}
	p := &KeyPattern{text: text}
	if err := p.read(tree, true, true); err != nil {
		return nil, err
	}
	literal := true
	for _, part := range p.parts {
		p.min, p.max = p.min+part.min, p.max+part.max
		size := 0
		for b := range 256 {
			if part.class.has(byte(b)) {
				p.alphabet.add(byte(b))
				size++
				if literal = literal && part.min == 1 && part.max == 1; literal && size == 1 {
					p.prefix += string(rune(b))
				} else if literal {
					p.prefix, literal = p.prefix[:len(p.prefix)-1], false
				}
			}
		}
		p.bits += math.Log2(float64(size)) * float64(part.min)
	}
	if p.max > MaxImportedLen {
		return nil, Invalidf("the pattern: keys of %d characters, at most %d", p.max, MaxImportedLen)
	}
	return p, nil
}

// read adds what a part of the syntax tree stands for. first and last say
// whether it stands at the pattern's beginning and end.
func (p *KeyPattern) read(re *syntax.Regexp, first, last bool) error {
	if re.Flags&syntax.FoldCase != 0 && re.Op == syntax.OpLiteral {
		return Invalidf("the pattern: letters of either case: say [Aa]")
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
		return nil
	case syntax.OpBeginText:
		if first {
			return nil
		}
	case syntax.OpEndText:
		if last {
			return nil
		}
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if err := p.class([]rune{r, r}); err != nil {
				return err
			}
		}
		return nil
	case syntax.OpCharClass:
		return p.class(re.Rune)
	case syntax.OpConcat, syntax.OpCapture:
		for i, sub := range re.Sub {
			if err := p.read(sub, first && i == 0, last && i == len(re.Sub)-1); err != nil {
				return err
			}
		}
		return nil
	case syntax.OpRepeat, syntax.OpQuest:
		return p.repeat(re)
	}
	return Invalidf("the pattern: want literal characters, classes such as [A-Za-z0-9] and counts such as {32}, not %s", re)
}

func (p *KeyPattern) class(ranges []rune) error {
	part := patternPart{min: 1, max: 1}
	for i := 0; i < len(ranges); i += 2 {
		if ranges[i] < 0x21 || ranges[i+1] > 0x7e {
			return Invalidf("the pattern: characters that no credential has")
		}
		for r := ranges[i]; r <= ranges[i+1]; r++ {
			if r == ',' {
				return Invalidf("the pattern: a comma can't stand in a credential")
			}
			part.class.add(byte(r))
		}
	}
	if part.class == (charSet{}) {
		return Invalidf("the pattern: a class without characters")
	}
	p.parts = append(p.parts, part)
	return nil
}

// repeat reads a count of one class: a count of more would make lengths that
// say nothing of what is inside.
func (p *KeyPattern) repeat(re *syntax.Regexp) error {
	least, most := re.Min, re.Max
	if re.Op == syntax.OpQuest {
		least, most = 0, 1
	}
	if most < 0 || most > MaxImportedLen {
		return Invalidf("the pattern: a count without an end: keys have at most %d characters", MaxImportedLen)
	}
	inner := &KeyPattern{}
	if err := inner.read(re.Sub[0], false, false); err != nil {
		return err
	}
	if len(inner.parts) != 1 || inner.parts[0].min != 1 || inner.parts[0].max != 1 {
		return Invalidf("the pattern: a count stands behind one class or character")
	}
	p.parts = append(p.parts, patternPart{inner.parts[0].class, least, most})
	return nil
}

// String is the pattern as it was written.
func (p *KeyPattern) String() string { return p.text }

// Bits is what the shortest key of this form leaves open.
func (p *KeyPattern) Bits() float64 { return p.bits }

// Match reports whether all of s is a key of this form.
func (p *KeyPattern) Match(s string) bool {
	if len(s) < p.min || len(s) > p.max {
		return false
	}
	at := make([]bool, len(s)+1) // where what was read so far may end
	at[0] = true
	for _, part := range p.parts {
		next := make([]bool, len(s)+1)
		for from := range at {
			if !at[from] {
				continue
			}
			for n := 0; n <= part.max && from+n <= len(s); n++ {
				if n > 0 && !part.class.has(s[from+n-1]) {
					break
				}
				if n >= part.min {
					next[from+n] = true
				}
			}
		}
		at = next
	}
	return at[len(s)]
}

// Mask replaces what is a key of this form, wherever it stands, in a short text
// for people.
func (p *KeyPattern) Mask(text string) string {
	const mark = "[redacted]"
	for at := 0; at+max(p.min, 1) <= len(text); at++ {
		if !strings.HasPrefix(text[at:], p.prefix) {
			continue
		}
		for n := min(p.max, len(text)-at); n >= max(p.min, 1); n-- {
			if p.Match(text[at : at+n]) {
				text = text[:at] + mark + text[at+n:]
				at += len(mark) - 1
				break
			}
		}
	}
	return text
}
