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
	took := func(text string) time.Duration {
		began := time.Now()
		m.String(text)
		return time.Since(began)
	}
	const size = 1 << 13
	for _, unit := range []string{"?", "&a=b", "%", "%25", "://a@", "a.b.", "eyJhbGciOi.", "a_", "a_b_", "#", ";=", "%3f", "%2525", "A", "a=%26", "key=", maskKey + " ", "= \"", "/%3Fa=", "key: ", "a:", "token=\"", "y=y", "//"} {
		for _, before := range []string{"", "/", "x ", "http://h?"} {
			small, big := time.Hour, time.Hour
			for range 20 { // the machine may be busy: the best times count
				small = min(small, took(before+strings.Repeat(unit, size/len(unit))))
				big = min(big, took(before+strings.Repeat(unit, 4*size/len(unit))))
				if big < 5*time.Millisecond || big < 10*small {
					break
				}
			}
			if big > 5*time.Millisecond && big > 10*small {
				t.Errorf("%q repeated after %q: %s for %d bytes, %s for %d", unit, before, small, size, big, 4*size)
			}
		}
	}
}
