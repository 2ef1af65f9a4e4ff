package pace_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/pace"
)

// flood lets callers send events one after another for a while, and returns how
// many passed.
func flood(p *pace.Pacer, callers int, length time.Duration) int64 {
	var passed atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	for range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if p.Wait(ctx) != pace.Waited {
					time.Sleep(time.Microsecond) // an event takes some time
				}
				passed.Add(1)
			}
		})
	}
	wg.Wait()
	return passed.Load()
}

func TestPacer_HoldsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace.New()
		p.SetRate(1000)
		if n := flood(p, 64, 10*time.Second); n < 9900 || n > 10300 {
			t.Errorf("%d events in 10 s at 1000 a second", n)
		}
	})
}

// TestPacer_ManyCallers: more of them than turns within Longest wait that long.
func TestPacer_ManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace.New()
		p.SetRate(1000)
		if n := flood(p, 1500, 10*time.Second); n > 10*1000+10*2*1500+2000 {
			t.Errorf("%d events in 10 s from 1500 callers", n)
		}
	})
}

func TestPacer_UnderTheRateNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace.New()
		p.SetRate(1000)
		for range 3000 {
			time.Sleep(time.Second / 900)
			if p.Wait(t.Context()) != pace.AtOnce {
				t.Fatal("it waited")
			}
		}
		for i := range 100 { // a burst after a pause
			if p.Wait(t.Context()) != pace.AtOnce {
				t.Fatalf("event %d of a burst waited", i)
			}
		}
	})
}

func TestPacer_Off(t *testing.T) {
	p := pace.New()
	for range 100_000 {
		if p.Wait(t.Context()) != pace.AtOnce {
			t.Fatal("it waited")
		}
	}
	p.SetRate(1)
	p.SetRate(0)
	if p.Wait(t.Context()) != pace.AtOnce {
		t.Error("it waited after it was turned off")
	}
}

func TestPacer_BoundsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace.New()
		p.SetRate(1)
		p.Wait(t.Context())
		var full, waited atomic.Int64
		var wg sync.WaitGroup
		began := time.Now()
		for range pace.MostWaiting + 500 {
			wg.Go(func() {
				switch p.Wait(t.Context()) {
				case pace.Waited:
					waited.Add(1)
				case pace.Full:
					full.Add(1)
				}
			})
		}
		wg.Wait()
		if waited.Load() != pace.MostWaiting || full.Load() != 500 {
			t.Errorf("%d waited, %d found it full", waited.Load(), full.Load())
		}
		if took := time.Since(began); took > pace.Longest {
			t.Errorf("waited %s", took)
		}
	})
}

func TestPacer_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace.New()
		p.SetRate(1)
		p.Wait(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		p.Wait(ctx)
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("waited %s", took)
		}
	})
}
