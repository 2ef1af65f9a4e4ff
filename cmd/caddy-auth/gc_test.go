package main

import "testing"

func TestPercentFor(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live      uint64
		want      int
		mostTotal uint64
	}{
		{0, 400, 0},
		{10 * mib, 400, 50 * mib},
		{64 * mib, 400, 320 * mib},
		{100 * mib, 240, 356 * mib},
		{320 * mib, 80, 576 * mib},
		{1000 * mib, leastPercent, 1256 * mib},
		{10_000 * mib, leastPercent, 12_500 * mib},
	} {
		got := percentFor(c.live)
		if got != c.want {
			t.Errorf("%d MiB live: %d %%, want %d", c.live/mib, got, c.want)
		}
		if total := c.live + c.live*uint64(got)/100; total > c.mostTotal {
			t.Errorf("%d MiB live: up to %d MiB in all, want at most %d", c.live/mib, total/mib, c.mostTotal/mib)
		}
	}
}
