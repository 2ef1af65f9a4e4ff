package manage

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func TestPattern_Bits(t *testing.T) {
	for _, text := range []string{`[A-Za-z0-9]{8}`, `key`, `[0-9a-f]{12,40}`} {
		if _, err := NewPattern("legacy", text); !errors.Is(err, auth.ErrInvalid) || auth.Hint(err) == "" {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := NewPattern("Legacy!", `[0-9a-f]{32}`); !errors.Is(err, auth.ErrInvalid) {
		t.Errorf("a format's name: %v", err)
	}
	if _, err := NewPattern("legacy", `[a-z]{12}`); err == nil || !strings.Contains(err.Error(), "about 56 bits") {
		t.Errorf("the estimate is not told: %v", err)
	}
}

func TestPattern_Check(t *testing.T) {
	p, err := NewPattern("legacy", `[A-Za-z0-9_-]{24,40}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{"hT4fQ9zLw2Xs8Rk1Vb6NcY3p", "6f1c1f0a-9d55-4b3e-8b1a-0c0f9e5d7a21", "kZ8mQ2vX9rT4wB7nL1cY5hJ3gF6dS0aP"} {
		if err := p.Check(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		strings.Repeat("a", 32), strings.Repeat("ab", 16), strings.Repeat("password", 4), "abcdefghijklmnopqrstuvwxyz012345", "0123456789012345678901234567890", "000000000000000000000000000000001",
		"short", "hT4fQ9zLw2Xs8Rk1Vb6NcY3,", "hT4fQ9zLw2Xs8Rk1Vb6NcY3 p",
	} {
		err := p.Check(bad)
		if !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), bad) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

func TestCheckImport(t *testing.T) {
	p, err := NewPattern("legacy", `[A-Za-z0-9]{24}`)
	if err != nil {
		t.Fatal(err)
	}
	const key = "hT4fQ9zLw2Xs8Rk1Vb6NcY3p"
	spec := KeySpec{Owner: "acme"}
	row, err := p.CheckImport(ImportRow{KeySpec: spec, Key: auth.NewSecret(key)}, time.Now())
	if err != nil || row.fingerprint != auth.FingerprintOf(key) || row.hint != "legacy_...cY3p" || row.Environment() != "live" {
		t.Errorf("%+v, %v", row, err)
	}
	hash := "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"
	if row, err = p.CheckImport(ImportRow{KeySpec: spec, SHA256: hash}, time.Now()); err != nil || row.fingerprint[0] != 0x9f {
		t.Errorf("%+v, %v", row, err)
	}
	for name, r := range map[string]ImportRow{
		"nothing": {KeySpec: spec}, "both": {KeySpec: spec, Key: auth.NewSecret(key), SHA256: hash}, "a short hash": {KeySpec: spec, SHA256: "ab"},
		"no owner": {SHA256: hash}, "a long hint": {KeySpec: spec, SHA256: hash, Hint: strings.Repeat("x", 50)}, "a key as the owner": {KeySpec: KeySpec{Owner: key}, SHA256: hash}, "a key in the metadata": {KeySpec: KeySpec{Owner: "acme", Meta: map[string]string{"x": "is " + key}}, SHA256: hash},
		"a hint that is a key":      {KeySpec: spec, SHA256: hash, Hint: key},
		"a hint that tells the key": {KeySpec: spec, Key: auth.NewSecret(key), Hint: "it is " + key[3:14]}, "a scope": {KeySpec: KeySpec{Owner: "acme", Scopes: []string{"a b"}}, SHA256: hash},
		"an end in the past": {KeySpec: KeySpec{Owner: "acme", ExpiresAt: 5}, SHA256: hash},
	} {
		if _, err := p.CheckImport(r, time.Now()); !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
