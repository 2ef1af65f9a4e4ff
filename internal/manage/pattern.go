package manage

import (
	"math"
	"regexp"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Bounds on imported keys.
const (
	// MinPatternBits is the least that a pattern must leave open: whoever gets
	// the hashes must not be able to find the keys by trying.
	MinPatternBits = 80
	// MinKeyBits is the least that a key itself must look like, by a rough
	// estimate that knows repetitions and sequences, and no words.
	MinKeyBits = 50
	// maxHint is the length of the longest hint, hintOverlap how many
	// characters in a row a hint may have in common with its key.
	maxHint, hintOverlap = 40, 8
)

// Pattern is a declared form of keys that were made elsewhere.
type Pattern struct {
	*auth.KeyPattern
	Name string
}

var formatName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// NewPattern reads a pattern. One of keys that could be guessed is
// auth.ErrInvalid, with the estimate.
func NewPattern(name, text string) (*Pattern, error) {
	if !formatName.MatchString(name) {
		return nil, auth.Invalidf("format %q: want a lower-case letter, then up to 31 lower-case letters, digits, - or _", name)
	}
	p, err := auth.ParseKeyPattern(text)
	if err != nil {
		return nil, err
	}
	if !(p.Bits() >= MinPatternBits) {
		return nil, auth.WithHint(auth.Invalidf("the pattern leaves about %.0f bits open, want %d or more: such keys can be found by trying", p.Bits(), MinPatternBits),
			"give those clients new keys: caddy-auth key create")
	}
	return &Pattern{p, name}, nil
}

// Check says what is wrong with a key of this form.
func (p *Pattern) Check(key string) error {
	if !p.Match(key) {
		return auth.Invalidf("the key does not match the pattern")
	}
	if bits := lookBits(key); bits < MinKeyBits {
		return auth.Invalidf("the key looks like one that was not made at random (about %.0f bits)", bits)
	}
	return nil
}

// checkHint refuses a hint that tells too much of a key. Of a key that is not
// known, only its hash, no more can be said.
func (p *Pattern) checkHint(hint, key string) error {
	for i := 0; i+hintOverlap <= len(hint); i++ {
		if strings.Contains(key, hint[i:i+hintOverlap]) && !strings.Contains(p.Name, hint[i:i+hintOverlap]) {
			return auth.Invalidf("hint: it tells %d characters of the key or more", hintOverlap)
		}
	}
	if p.Mask(hint) != hint {
		return auth.Invalidf("hint: it has the form of a key")
	}
	return checkText("hint", hint, maxHint)
}

// checkFields refuses keys where they would be shown: columns get mixed up.
func (p *Pattern) checkFields(row ImportRow) error {
	texts := map[string]string{"owner": row.Owner, "name": row.Name, "env": row.Environment, "scopes": strings.Join(row.Scopes, " ")}
	for k, v := range row.Meta {
		texts["meta"] += " " + k + "=" + v
	}
	for what, text := range texts {
		if p.Mask(text) != text {
			return auth.Invalidf("%s: it holds what has the form of a key", what)
		}
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
