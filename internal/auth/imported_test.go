package auth

import (
	"fmt"
	"testing"
)

func TestImported(t *testing.T) {
	var none *Imported
	if none.Has(FingerprintOf("x")) || none.Len() != 0 {
		t.Error("nil knows something")
	}
	if _, _, ok := none.Find("x"); ok {
		t.Error("nil finds something")
	}
	key := func(i int) string { return fmt.Sprintf("sk_%032d", i) }
	var sums []uint64
	for i := range 1000 {
		sums = append(sums, Sum(FingerprintOf(key(i))))
	}
	m, err := NewImported([]string{`sk_[0-9]{32}`, `[0-9a-f]{8}-[0-9a-f]{4}`}, sums)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1000; i < 12_000; i += 100 { // more than fit beside the sorted ones
		var fps []Fingerprint
		for j := range 100 {
			fps = append(fps, FingerprintOf(key(i+j)))
		}
		m = m.With(fps)
	}
	for i := range 12_000 {
		if !m.Has(FingerprintOf(key(i))) {
			t.Fatalf("key %d is not known", i)
		}
	}
	if m.Has(FingerprintOf(key(12_000))) || m.Len() != 12_000 {
		t.Errorf("%d keys", m.Len())
	}
	text := "a " + key(99_999) + " then 01234567-89ab and " + key(7) + "!"
	start, end, ok := m.Find(text)
	if !ok || text[start:end] != key(7) {
		t.Errorf("found %q", text[start:end])
	}
	for _, text := range []string{"x" + key(7), key(7) + "9", "sk_sk_" + key(7)[3:], key(99_999) + key(7)} {
		if start, end, ok := m.Find(text); !ok || text[start:end] != key(7) {
			t.Errorf("not found in %q", text)
		}
	}
	if _, _, ok := m.Find("only " + key(99_999)); ok {
		t.Error("found what looks like a key and is none")
	}
}
