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

// TestImported_Escapes: a key that holds an escape itself is found however often a
// URL or a text encodes it.
func TestImported_Escapes(t *testing.T) {
	const key = "tok%41-0123456789abcdef0123"
	known, _ := auth.NewImported([]string{`tok%41-[0-9a-f]{20}`}, []uint64{auth.Sum(auth.FingerprintOf(key))})
	m := redact.NewMasker()
	m.SetImported(t, known)
	encoded := key
	for times := range 4 {
		for _, target := range []string{"/?k=" + encoded, "/a/" + encoded, "/?a=b&k=" + encoded + "&c=d"} {
			if f := redact.ScanImported(target, known); f.What != redact.KeyShape || len(f.Keys) != 1 || f.Keys[0] != key {
				t.Errorf("%d times: %s: %+v", times, target, f)
			}
			if got := m.String(target); strings.Contains(got, "0123456789abcdef") {
				t.Errorf("%d times: logged as %s", times, got)
			}
		}
		encoded = strings.ReplaceAll(encoded, "%", "%25")
	}
}
