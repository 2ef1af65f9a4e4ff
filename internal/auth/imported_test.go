package auth

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// knows returns an Imported that knows keys of patterns.
func knows(t *testing.T, keys []string, patterns ...string) *Imported {
	t.Helper()
	var sums []uint64
	for _, k := range keys {
		sums = append(sums, Sum(FingerprintOf(k)))
	}
	m, unread := NewImported(patterns, sums)
	if len(unread) > 0 {
		t.Fatal(unread)
	}
	return m
}

func TestImported_Has(t *testing.T) {
	var none *Imported
	if found, complete := none.FindAll("x"); none.Has(FingerprintOf("x")) || none.Len() != 0 || none.Matches("x") || len(found) > 0 || !complete {
		t.Error("nil knows something")
	}
	key := func(i int) string { return fmt.Sprintf("sk_%032d", i) }
	var first []string
	for i := range 1000 {
		first = append(first, key(i))
	}
	m := knows(t, first, `sk_[0-9]{32}`)
	const all = 80_000 // more than fit beside the sorted ones
	for i := 1000; i < all; i += 500 {
		var fps []Fingerprint
		for j := range 500 {
			fps = append(fps, FingerprintOf(key(i+j)))
		}
		m = m.With(fps)
	}
	for i := range all {
		if !m.Has(FingerprintOf(key(i))) {
			t.Fatalf("key %d is not known", i)
		}
	}
	if m.Has(FingerprintOf(key(all))) || m.Len() != all {
		t.Errorf("%d keys", m.Len())
	}
}

// TestImported_FindAll: keys are found as they stand in URLs and texts, and
// what only looks like one is not.
func TestImported_FindAll(t *testing.T) {
	const token = "hT4fQ9zLw2Xs8Rk1Vb6NcY3pKd7mJg5aGe0uBx4Z"
	for pattern, keys := range map[string][]string{
		`sk_live_[A-Za-z0-9]{40}`:   {"sk_live_" + token},
		`^sk_live_[A-Za-z0-9]{40}$`: {"sk_live_" + token},
		`sk_[A-Za-z0-9]{20,64}`:     {"sk_" + token, "sk_" + token[:20]},
		`[A-Za-z0-9]{40}`:           {token},
		`[A-Za-z0-9+/=]{40}`:        {token, "ab+/" + token[:34] + "=="},
		`[A-Za-z0-9+/]{40}`:         {token, "a/b+" + token[:36]},
		`[A-Za-z0-9_.-]{20,64}`:     {token, "a-b_c." + token},
		`[A-Za-z0-9]{20,64}`:        {token},
		`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`: {"6f1c1f0a-9d55-4b3e-8b1a-0c0f9e5d7a21"},
	} {
		m := knows(t, keys, pattern)
		for _, key := range keys {
			for _, around := range []string{"%s", "/?token=%s", "/?a=1&token=%s&b=2", "/v1/files/%s", "/%s.json", "Bearer %s", `{"key":"%s"}`, "key: %s, other", "/?next=https://x/%s?y"} {
				text := fmt.Sprintf(around, key)
				found, complete := m.FindAll(text)
				if len(found) != 1 || text[found[0].Start:found[0].End] != key || !complete {
					t.Errorf("%s in %q: %v, %v", pattern, text, found, complete)
				}
			}
			if found, _ := m.FindAll("/?id=" + strings.ToUpper(key) + "0&x=" + strings.Repeat("0", 64)); len(found) > 0 {
				t.Errorf("%s: found what is none", pattern)
			}
		}
		behind := "/?cursor=" + strings.Repeat("x", 1100) + "&t=" + keys[0]
		if found, complete := m.FindAll(behind); len(found) != 1 || !complete {
			t.Errorf("%s: behind a long word: %v, %v", pattern, found, complete)
		}
		two := keys[0] + " and " + keys[0]
		if found, _ := m.FindAll(two); len(found) != 2 {
			t.Errorf("%s: %d of two", pattern, len(found))
		}
	}
}

// TestImported_BoundedWork: whatever a request holds, a search is short.
func TestImported_BoundedWork(t *testing.T) {
	const token = "hT4fQ9zLw2Xs8Rk1Vb6NcY3pKd7mJg5aGe0uBx4Z"
	m := knows(t, []string{token}, `[A-Za-z0-9]{40}`, `[A-Za-z0-9+/]{40}=`, `[A-Za-z0-9_-]{500}`, `a[A-Za-z0-9_.-]{20,500}`, `[A-Za-z0-9_.-]{20,500}`)
	for name, text := range map[string]string{
		"many keys": strings.Repeat(token+"&", 20_000), "many words": strings.Repeat("a.b-", 1<<18),
	} {
		began := time.Now()
		_, complete := m.FindAll(text)
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("%s: %s", name, took)
		}
		if complete {
			t.Errorf("%s: not all of it was searched, and nobody is told", name)
		}
	}
	for name, text := range map[string]string{"a long word": strings.Repeat("x", 1<<20), "prefixes": strings.Repeat("a", 1<<20)} {
		began := time.Now()
		_, complete := m.FindAll(text)
		if took := time.Since(began); took > 500*time.Millisecond || !complete {
			t.Errorf("%s: %s, complete %v", name, took, complete)
		}
	}
}

func TestKeyPattern(t *testing.T) {
	for text, want := range map[string]float64{
		`sk_live_[A-Za-z0-9]{32}`: 32 * math.Log2(62), `[0-9a-f]{8}-[0-9a-f]{24}`: 128, `[0-9a-f]{32,40}`: 128, `^([a-z]{20})x?$`: 20 * math.Log2(26), `[ab]{3}[0-9]`: 3 + math.Log2(10),
	} {
		p, err := ParseKeyPattern(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if math.Abs(p.Bits()-want) > 0.01 {
			t.Errorf("%s leaves %.1f bits, want %.1f", text, p.Bits(), want)
		}
	}
	for _, text := range []string{
		`.{40}`, `[a-z]*`, `[a-z]+`, `[a-z]{40,}`, `([a-z]{40}|x)`, `[a-z`, `\s{40}`, `[^a]{40}`, `[ -~]{40}`, `[é-ü]{40}`, `[!-~]{40}`, strings.Repeat("a", 300),
		`[^\x00-\x{10FFFF}]{0}[0-9]{6}`, `(?i)abc[0-9]{40}`, `a^b`, `a$b`, `(?:ab){40}`, `[a-z]{600}`, `[a-z]{400}[0-9]{400}`, `\bx`,
	} {
		if p, err := ParseKeyPattern(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
	p, err := ParseKeyPattern(`sk_[a-z]{2,4}[a-z0-9]{3}x?`)
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]bool{"sk_abc12": true, "sk_abcd": false, "sk_ab123": true, "sk_abcd123x": true, "sk_abcd1234": false, "sk_a123": false, "SK_abc12": false, "sk_abc12 ": false, "": false} {
		if p.Match(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for text, want := range map[string]string{`owner "sk_abc12": no, abc`: `owner "[redacted]": no, abc`, "x,sk_abc12": "x,[redacted]", "k=sk_abc12;": "k=[redacted];", "sk_": "sk_"} {
		if got := p.Mask(text); got != want {
			t.Errorf("%s: masked to %s", text, got)
		}
	}
	if m, unread := NewImported([]string{`(?:ab){40}`, `[0-9]{30}`}, []uint64{Sum(FingerprintOf("x"))}); len(unread) != 1 || !m.Has(FingerprintOf("x")) {
		t.Errorf("a pattern of a later release: %v", unread)
	}
}
