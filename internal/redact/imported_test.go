package redact_test

import (
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
)

const importedKey = "6f1c1f0a-9d55-4b3e-8b1a-0c0f9e5d7a21"

func imported(t *testing.T) *auth.Imported {
	t.Helper()
	m, unread := auth.NewImported([]string{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`}, []uint64{auth.Sum(auth.FingerprintOf(importedKey))})
	if len(unread) > 0 {
		t.Fatal(unread)
	}
	return m
}

func TestScanImported(t *testing.T) {
	m := imported(t)
	for target, name := range map[string]string{
		"/a/" + importedKey: "", "/?id=" + importedKey: "id", "/?a=1&b=" + strings.ReplaceAll(importedKey, "-", "%2d"): "b", "http://h/?x=" + importedKey: "x",
	} {
		f := redact.ScanImported(target, m)
		if f.What != redact.KeyShape || f.Name != name || len(f.Keys) != 1 || f.Keys[0] != importedKey || f.InPath != !strings.Contains(target, "?") {
			t.Errorf("%s: %+v", target, f)
		}
	}
	if f := redact.ScanImported("/?id=0b7e2c94-51ad-4f6e-a3c8-7d1e90b25f43", m); f.What != redact.Nothing {
		t.Errorf("an id like any other: %+v", f)
	}
}

// TestMasker_Imported: keys go, ids stay, and a text full of keys takes no
// longer than any other.
func TestMasker_Imported(t *testing.T) {
	m := redact.NewMasker()
	const id = "0b7e2c94-51ad-4f6e-a3c8-7d1e90b25f43"
	text := "from " + id + " with " + importedKey + " and " + importedKey
	if m.String(text) != text {
		t.Error("masked before it was known")
	}
	m.SetImported(t, imported(t))
	if got := m.String(text); strings.Contains(got, importedKey) || !strings.Contains(got, id) {
		t.Errorf("%q", got)
	}
	if got := m.String("/?a=" + strings.ReplaceAll(importedKey, "-", "%2D")); strings.Contains(got, "0c0f9e5d7a21") {
		t.Errorf("%q", got)
	}
	began := time.Now()
	if got := m.String(strings.Repeat(importedKey+" ", 100_000)); strings.Contains(got, importedKey) {
		t.Error("a key is left in a long text")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s", took)
	}
	m.SetImported(t, nil)
	if m.String(text) != text {
		t.Error("masked after its store had ended")
	}
}
