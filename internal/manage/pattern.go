package manage

import (
	"math"
	"regexp"
	"regexp/syntax"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Bounds on imported keys.
const (
	// MinPatternBits is the least that a pattern must leave open: whoever gets
	// the hashes must not be able to find the keys by trying.
	MinPatternBits = 80
	// MinKeyBits is the least that a key itself must look like, by a rough
	// estimate.
	MinKeyBits     = 50
	maxImportedLen = 512
)

// Pattern is a declared form of keys that were made elsewhere.
type Pattern struct {
	Name, Text string
	Bits       float64 // what the shortest key of this form leaves open

	whole *regexp.Regexp
}

var formatName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// NewPattern reads a pattern: literal characters, classes such as [A-Za-z0-9],
// and counts such as {32} or {20,40}. A pattern of keys that could be guessed
// is auth.ErrInvalid, with the estimate.
func NewPattern(name, text string) (*Pattern, error) {
	if !formatName.MatchString(name) {
		return nil, auth.Invalidf("format %q: want a lower-case letter, then up to 31 lower-case letters, digits, - or _", name)
	}
	if len(text) > 256 {
		return nil, auth.Invalidf("the pattern is longer than 256 bytes")
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, auth.Invalidf("the pattern: %v", err)
	}
	p := &Pattern{Name: name, Text: text}
	if p.Bits, err = bitsOf(tree); err != nil {
		return nil, err
	}
	if p.Bits < MinPatternBits {
		return nil, auth.WithHint(auth.Invalidf("the pattern leaves about %.0f bits open, want %d or more: such keys can be found by trying", p.Bits, MinPatternBits),
			"give those clients new keys: caddy-auth key create")
	}
	p.whole, err = regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return nil, auth.Invalidf("the pattern: %v", err)
	}
	return p, nil
}

// bitsOf adds up what a pattern leaves open, at its shortest.
func bitsOf(re *syntax.Regexp) (float64, error) {
	switch re.Op {
	case syntax.OpLiteral, syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText:
		return 0, nil
	case syntax.OpCharClass:
		n := 0
		for i := 0; i < len(re.Rune); i += 2 {
			if re.Rune[i] < 0x21 || re.Rune[i+1] > 0x7e {
				return 0, auth.Invalidf("the pattern: a class with characters that no credential has")
			}
			n += int(re.Rune[i+1]-re.Rune[i]) + 1
		}
		return math.Log2(float64(n)), nil
	case syntax.OpConcat, syntax.OpCapture:
		sum := 0.0
		for _, sub := range re.Sub {
			bits, err := bitsOf(sub)
			if err != nil {
				return 0, err
			}
			sum += bits
		}
		return sum, nil
	case syntax.OpRepeat:
		bits, err := bitsOf(re.Sub[0])
		if err == nil && (re.Max < 0 || re.Max > maxImportedLen) {
			err = auth.Invalidf("the pattern: a count without an end: keys have at most %d characters", maxImportedLen)
		}
		return bits * float64(re.Min), err
	}
	return 0, auth.Invalidf("the pattern: want literal characters, classes such as [A-Za-z0-9] and counts such as {32}, not %s", re)
}

// Check says what is wrong with a key of this form.
func (p *Pattern) Check(key string) error {
	if len(key) > maxImportedLen {
		return auth.Invalidf("a key of %d characters, at most %d", len(key), maxImportedLen)
	}
	for i := range len(key) {
		if key[i] < 0x21 || key[i] > 0x7e || key[i] == ',' {
			return auth.Invalidf("a key with characters that can't stand in a header")
		}
	}
	if !p.whole.MatchString(key) {
		return auth.Invalidf("the key does not match the pattern")
	}
	if bits := lookBits(key); bits < MinKeyBits {
		return auth.Invalidf("the key looks like one that was not made at random (about %.0f bits)", bits)
	}
	return nil
}

// lookBits is a rough estimate of what a text could hold: its characters'
// entropy, for as many of them as do not go on as those before did.
func lookBits(s string) float64 {
	counts := map[byte]int{}
	triples := map[string]bool{}
	fresh := min(len(s), 2)
	for i := range len(s) {
		counts[s[i]]++
		if i < 2 {
			continue
		}
		triple := s[i-2 : i+1]
		if !triples[triple] && s[i]-s[i-1] != s[i-1]-s[i-2] {
			fresh++
		}
		triples[triple] = true
	}
	entropy := 0.0
	for _, n := range counts {
		p := float64(n) / float64(len(s))
		entropy -= p * math.Log2(p)
	}
	return entropy * float64(fresh)
}
