package redact_test

import (
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// TestMasker_Literals: a secret of no shape is masked wherever it stands, as
// long as somebody uses it.
func TestMasker_Literals(t *testing.T) {
	m := redact.NewMasker()
	one, other, short := auth.NewSecret("plain+word/with=marks"), auth.NewSecret("plain+word"), auth.NewSecret("short")
	for _, s := range []string{"plain+word/with=marks", "short"} {
		if got := m.String("the " + s); got != "the "+s {
			t.Fatalf("before: %s", got)
		}
	}
	m.SetLiterals(1, one)
	m.SetLiterals(2, other, one, short)
	for text, want := range map[string]string{
		"error: plain+word/with=marks is bad": "error: REDACTED is bad",
		"plain+word and plain+word/with=mark": "REDACTED and REDACTED/with=mark",
		"a plain%2Bword%2Fwith%3Dmarks b":     "a REDACTED b",
		"a plain%2bword%2fwith%3Dmarks b":     "REDACTED",
		`a plain+word\/with=marks b`:          "a REDACTED\\/with=marks b",
		"a short one":                         "a short one",
		"nothing here":                        "nothing here",
		"100% of it":                          "100% of it",
	} {
		if got := m.String(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	for secret, forms := range map[string][]string{
		"pass&word<12>":       {`{"x":"pass\u0026word\u003c12\u003e"}`, `pass%26word%3C12%3E`, `"pass&word<12>"`},
		`back\slash-secret`:   {`{"x":"back\\slash-secret"}`, `back%5Cslash-secret`},
		"with blank secret 1": {"secret=with+blank+secret+1", "with%20blank%20secret%201"},
		`quoted"secret"`:      {`{"x":"quoted\"secret\""}`},
	} {
		m.SetLiterals(3, auth.NewSecret(secret))
		for _, text := range append(forms, secret) {
			if got := m.String("x " + text); !strings.Contains(got, redact.Mark) || strings.Contains(got, "word") || strings.Contains(got, "slash") || strings.Contains(got, "blank") || strings.Contains(got, "quoted") {
				t.Errorf("%s: %s", text, got)
			}
		}
	}
	m.SetLiterals(3)
	if _, safe, _ := m.Header("X-Echo", []string{"got plain+word/with=marks"}); strings.Contains(safe[0], "plain") {
		t.Errorf("%v", safe)
	}
	m.SetLiterals(2)
	if got := m.String("plain+word, plain+word/with=marks"); got != "plain+word, REDACTED" {
		t.Error(got)
	}
	m.SetLiterals(1)
	if got := m.String("x plain+word/with=marks"); got != "x plain+word/with=marks" {
		t.Error(got)
	}
}
