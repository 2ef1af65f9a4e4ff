package redact

import (
	"strings"
	"testing"
	"time"
)

// TestMask_TimeIsLinear: a client chooses what is logged, not how long that
// takes. Four times the text may not take ten times as long.
func TestMask_TimeIsLinear(t *testing.T) {
	m := NewMasker()
	best := func(text string) time.Duration {
		least := time.Hour
		for range 2 {
			began := time.Now()
			m.String(text)
			least = min(least, time.Since(began))
		}
		return least
	}
	const size = 1 << 13
	for _, unit := range []string{"?", "&a=b", "%", "%25", "://a@", "a.b.", "eyJhbGciOi.", "a_", "a_b_", "#", ";=", "%3f", "%2525", "A", "a=%26", "key=", maskKey + " ", "= \"", "/%3Fa=", "key: ", "a:", "token=\"", "y=y", "//"} {
		for _, before := range []string{"", "/", "x ", "http://h?"} {
			small, big := best(before+strings.Repeat(unit, size/len(unit))), best(before+strings.Repeat(unit, 4*size/len(unit)))
			if big > 10*time.Millisecond && big > 10*small {
				t.Errorf("%q repeated after %q: %s for %d bytes, %s for %d", unit, before, small, size, big, 4*size)
			}
		}
	}
}
