package limit_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-auth/caddy-auth/internal/limit"
)

// TestLocal_NeverMoreThanTheRate: in any window of events at any times, no more
// than the burst and what drained meanwhile get in, and a key that is told how
// long to wait has room then.
func TestLocal_NeverMoreThanTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := limit.Rate{Every: time.Duration(rapid.IntRange(1, 1000).Draw(t, "every")), Burst: rapid.IntRange(1, 20).Draw(t, "burst")}
		l := limit.NewLocal[string](rate, 10)
		start := time.Unix(1000, 0)
		now := start
		var in []time.Time
		for range rapid.IntRange(1, 200).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "step")))
			left := l.Left("k", now)
			if got := l.Add("k", now); got != (left == 0) {
				t.Fatalf("Left said %d, Add %v", left, got)
			} else if got {
				in = append(in, now)
			} else if l.Left("k", now.Add(left)) != 0 || l.Left("k", now.Add(left-1)) == 0 {
				t.Fatalf("room in %d: not then, or earlier", left)
			}
		}
		for i := range in {
			for j := i; j < len(in); j++ {
				if most := rate.Burst + int(in[j].Sub(in[i])/rate.Every); j-i+1 > most {
					t.Fatalf("%d events in %d, at most %d", j-i+1, in[j].Sub(in[i]), most)
				}
			}
		}
	})
}

func TestLocal_IsBounded(t *testing.T) {
	l := limit.NewLocal[int](limit.Rate{Every: time.Hour, Burst: 1}, 100)
	now := time.Unix(1000, 0)
	full := 0
	for i := range 10_000 {
		l.Add(i, now)
	}
	for i := range 10_000 {
		if l.Left(i, now) > 0 {
			full++
		}
	}
	if full != 100 {
		t.Errorf("%d keys are remembered, want 100", full)
	}
	l.Add(-1, now.Add(2*time.Hour)) // all others have drained
	if l.Left(-1, now.Add(2*time.Hour)) == 0 {
		t.Error("the newest key was forgotten instead of those that have drained")
	}
}
