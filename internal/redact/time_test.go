package redact

import (
	"strings"
	"testing"
	"time"
)

// TestMask_TimeIsLinear: a client chooses what is logged, not how long that
// takes.
func TestMask_TimeIsLinear(t *testing.T) {
	m := NewMasker()
	for _, unit := range []string{"?", "&a=b", "%", "%25", "://a@", "a.b.", "eyJhbGciOi.", "a_", "a_b_", "#", ";=", "%3f", "%2525", "A", "a=%26", "key=", maskKey + " ", "= \"", "/%3Fa="} {
		s := strings.Repeat(unit, 1<<18/len(unit))
		for _, s := range []string{s, "/" + s, "x " + s, "http://h?" + s} {
			began := time.Now()
			m.String(s)
			if took := time.Since(began); took > time.Second {
				t.Errorf("%d bytes of %q took %s", len(s), unit, took)
			}
		}
	}
}
