package limit_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-auth/caddy-auth/internal/limit"
)

// TestSlots_OneKeyDoesNotStandInAnothersWay: beside a flood of one key, each of
// the others waits for one turn at most.
func TestSlots_OneKeyDoesNotStandInAnothersWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work = 150 * time.Millisecond
		s := limit.NewSlots[string](4, 2, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		for range 64 {
			flood.Go(func() {
				for ctx.Err() == nil {
					if release, err := s.Take(ctx, "flood"); err == nil {
						time.Sleep(work)
						release()
					}
				}
			})
		}
		synctest.Wait()
		for i := range 100 {
			began := time.Now()
			release, err := s.Take(t.Context(), "good")
			if err != nil || time.Since(began) > work {
				t.Fatalf("%d: %v after %s", i, err, time.Since(began))
			}
			time.Sleep(work)
			release()
		}
		cancel()
		flood.Wait()
	})
}

// TestSlots_ManyKeys: with more keys than slots each gets its turn in order.
func TestSlots_ManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := limit.NewSlots[int](2, 2, 10)
		hold, err := s.Take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		more, err := s.Take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		var order []int
		for _, key := range []int{7, 7, 7, 8, 9, 8} {
			go func() {
				release, err := s.Take(t.Context(), key)
				if err == nil {
					order = append(order, key)
					time.Sleep(time.Second)
					release()
				}
			}()
			synctest.Wait()
		}
		hold()
		time.Sleep(time.Minute)
		more()
		if want := [6]int{7, 8, 9, 7, 8, 7}; [6]int(order) != want {
			t.Errorf("%v, want %v", order, want)
		}
	})
}

func TestSlots_Bounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := limit.NewSlots[string](4, 1, 1)
		release, err := s.Take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { _, _ = s.Take(ctx, "a") }()
		synctest.Wait()
		if _, err := s.Take(t.Context(), "a"); !errors.Is(err, limit.ErrFull) {
			t.Errorf("more wait than may: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := s.Take(ctx, "a"); !errors.Is(err, limit.ErrFull) {
			t.Errorf("after the time: %v", err)
		}
		// Those who can't be told apart may have all.
		for range 3 {
			if _, err := s.Take(t.Context(), ""); err != nil {
				t.Error(err)
			}
		}
		release()
		if _, err := s.Take(t.Context(), ""); err != nil {
			t.Error(err)
		}
	})
}

// TestSlots_Property: never more than there are, never more of a key than its
// share, and all come back.
func TestSlots_Property(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		total, share := rapid.IntRange(1, 5).Draw(rt, "total"), rapid.IntRange(1, 3).Draw(rt, "share")
		s := limit.NewSlots[int](total, share, 50)
		var used atomic.Int64
		var of [4]atomic.Int64
		var wg sync.WaitGroup
		for _, key := range rapid.SliceOfN(rapid.IntRange(1, 3), 1, 40).Draw(rt, "keys") {
			late := rapid.Bool().Draw(rt, "late")
			wg.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if late {
					cancel()
				}
				release, err := s.Take(ctx, key)
				if err != nil {
					return
				}
				if n := used.Add(1); n > int64(total) {
					rt.Errorf("%d of %d", n, total)
				}
				if n := of[key].Add(1); n > int64(share) {
					rt.Errorf("%d of a share of %d", n, share)
				}
				of[key].Add(-1)
				used.Add(-1)
				release()
			})
		}
		wg.Wait()
		for range min(total, share) {
			if _, err := s.Take(context.Background(), 1); err != nil {
				rt.Errorf("a slot is lost: %v", err)
			}
		}
	})
}
