package feed_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/feed"
)

// started runs a follower in a bubble until the test's part ends.
func started(t *testing.T, j *fakeJournal, cfg feed.Config, ev feed.Events, part func(f *feed.Follower)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if len(j.rows) == 0 {
			j.epoch = auth.Epoch{9}
			j.add(auth.Change{Kind: "init"})
		}
		f := feed.New(j, &fakeTier{}, auth.Node{ID: "node_1", Name: "one"}, cfg, ev)
		f.Start()
		synctest.Wait()
		part(f)
		f.Stop()
		f.Stop()
	})
}

func (j *fakeJournal) set(edit func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	edit()
}

// onlyLooks makes j.err fail looks and not heartbeats.
func (j *fakeJournal) onlyLooks() { j.set(func() { j.beatsGoOn = true }) }

func (j *fakeJournal) count() (looks, beats int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.looks, len(j.beats)
}

func (j *fakeJournal) lastBeat(t *testing.T) auth.Node {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.beats) == 0 {
		t.Fatal("no heartbeat")
	}
	return j.beats[len(j.beats)-1]
}

func TestTrust_NeedsAHeartbeat(t *testing.T) {
	j := &fakeJournal{}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		if !f.Trusted(time.Now()) {
			t.Fatal("not trusted at the start")
		}
		j.set(func() { j.beatErr = errors.New("away") })
		looks, _ := j.count()
		time.Sleep(fastC.MaxStaleness + time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted although no heartbeat was confirmed")
		}
		if now, _ := j.count(); now == looks {
			t.Error("no look was made: the test shows nothing")
		}
		j.set(func() { j.beatErr = nil })
		time.Sleep(3 * time.Second)
		if !f.Trusted(time.Now()) {
			t.Error("did not recover by itself")
		}
	})
}

// TestTrust_CountsFromTheHeartbeatsBeginning: it may take long to be confirmed.
func TestTrust_CountsFromTheHeartbeatsBeginning(t *testing.T) {
	j := &fakeJournal{beating: func() { time.Sleep(4 * time.Second) }}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		time.Sleep(4*time.Second + 500*time.Millisecond)
		if !f.Trusted(time.Now()) {
			t.Fatal("not trusted")
		}
		j.set(func() { j.beatErr = errors.New("away") })
		time.Sleep(fastC.MaxStaleness - 4*time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted for longer than max_staleness from the heartbeat's beginning")
		}
	})
}

// TestTrust_CountsFromTheLooksBeginning: so may a look.
func TestTrust_CountsFromTheLooksBeginning(t *testing.T) {
	j := &fakeJournal{}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		j.set(func() { j.during = func() { time.Sleep(4 * time.Second) } })
		time.Sleep(2*fastC.PollInterval + 4*time.Second) // one such look has ended
		j.set(func() { j.err = errors.New("away") })
		if age := f.Age(time.Now()); age < 4*time.Second {
			t.Fatalf("a look that took four seconds is %s old at its end", age)
		}
		j.set(func() { j.during = nil })
		time.Sleep(fastC.MaxStaleness - 2*time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted for longer than max_staleness from the look's beginning")
		}
	})
}

func TestTrust_StoreThatCantBeWritten(t *testing.T) {
	j := &fakeJournal{}
	var told atomic.Int64
	started(t, j, fastC, feed.Events{BeatFailed: func(error) { told.Add(1) }}, func(f *feed.Follower) {
		j.set(func() { j.beatErr = auth.ErrNotWritable })
		time.Sleep(10 * fastC.MaxStaleness)
		if !f.Trusted(time.Now()) {
			t.Error("a full disk ended trust")
		}
		if told.Load() < 10 {
			t.Errorf("told %d times", told.Load())
		}
	})
}

// TestTrust_GoesByWhatTheStoreWasTold: others give a gateway up by the
// max_staleness it told, so a longer one counts from the next heartbeat on.
func TestTrust_GoesByWhatTheStoreWasTold(t *testing.T) {
	j := &fakeJournal{}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		j.set(func() { j.beatErr, j.err = errors.New("away"), errors.New("away") })
		long := fastC
		long.MaxStaleness = time.Hour
		f.Tune(long)
		time.Sleep(fastC.MaxStaleness)
		if f.Trusted(time.Now()) {
			t.Error("trusted longer than the store was told")
		}
		j.set(func() { j.beatErr, j.err = nil, nil })
		time.Sleep(2 * time.Second)
		if got := j.lastBeat(t).MaxStaleness; got != time.Hour || !f.Trusted(time.Now()) {
			t.Errorf("told %s, trusted %v", got, f.Trusted(time.Now()))
		}
		short := fastC
		short.MaxStaleness = 2 * time.Second
		f.Tune(short)
		j.set(func() { j.err = errors.New("away") })
		time.Sleep(2 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("a shorter one counts at once")
		}
	})
}

func TestBeat_AcknowledgesWhatIsApplied(t *testing.T) {
	j := &fakeJournal{}
	var acked atomic.Int64 // when the change was remembered and not dropped yet
	started(t, j, fastC, feed.Events{Remembered: func(c auth.Change) {
		time.Sleep(300 * time.Millisecond) // heartbeats go on meanwhile
		acked.Store(max(acked.Load(), c.Seq-j.lastBeat(t).Seq))
	}}, func(f *feed.Follower) {
		time.Sleep(time.Second)
		if b := j.lastBeat(t); b.Seq != 1 || b.Row != j.rows[0].Row || b.ID != "node_1" || b.MaxStaleness != fastC.MaxStaleness {
			t.Errorf("the first acknowledgement: %+v", b)
		}
		c := j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
		f.Ring()
		time.Sleep(500 * time.Millisecond)
		if b := j.lastBeat(t); b.Seq != c.Seq || b.Row != c.Row {
			t.Errorf("not acknowledged soon: %+v", b)
		}
		if acked.Load() != 1 {
			t.Error("acknowledged before it was dropped")
		}
		_, beats := j.count()
		time.Sleep(10 * fastC.MaxStaleness)
		_, after := j.count()
		if n := after - beats; n < 95 || n > 105 {
			t.Errorf("%d heartbeats in ten max_staleness, want ten each", n)
		}
	})
}

// TestRing_Flood: somebody rings without end; the store is read little, and a
// change is seen soon all the same.
func TestRing_Flood(t *testing.T) {
	j := &fakeJournal{}
	var news, nothing atomic.Int64
	started(t, j, fastC, feed.Events{Rung: func(n bool) {
		if n {
			news.Add(1)
		} else {
			nothing.Add(1)
		}
	}}, func(f *feed.Follower) {
		before, _ := j.count()
		flood := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
				f.Ring()
			}
		}
		flood(10 * time.Second)
		looks, _ := j.count()
		if n := looks - before; n > 60 {
			t.Errorf("%d looks in 10 s, one a second without the flood", n)
		}
		c := j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
		flood(350 * time.Millisecond)
		if cursor, _ := f.Position(); cursor != c.Seq {
			t.Error("a change was not seen in the flood")
		}
		if news.Load() > 1 || nothing.Load() < 20 { // the poll may have been quicker
			t.Errorf("rung with news %d, with nothing %d", news.Load(), nothing.Load())
		}
		// Without one, a bell is heard at once, and one after the other.
		time.Sleep(fastC.PollInterval + 400*time.Millisecond)
		for range 20 {
			c = j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
			f.Ring()
			time.Sleep(30 * time.Millisecond)
			if cursor, _ := f.Position(); cursor != c.Seq {
				t.Fatal("a bell was not heard")
			}
		}
	})
}

// TestLook_WaitsForAnotherWithItsContext: a look that hangs holds up no more
// than those who can wait.
func TestLook_WaitsForAnotherWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &fakeJournal{epoch: auth.Epoch{9}}
		j.add(auth.Change{Kind: "init"})
		f, _ := follow(t, j, feed.Events{})
		goOn := make(chan struct{})
		j.during = func() { <-goOn }
		first := make(chan error, 1)
		go func() { first <- f.Look(t.Context()) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.Look(ctx); err == nil {
			t.Error("looked while another looks")
		}
		close(goOn)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// TestTrust_NotWritable: a store that has become full changes for nobody; of
// one that this node never could write nobody knows.
func TestTrust_NotWritable(t *testing.T) {
	j := &fakeJournal{beatErr: auth.ErrNotWritable}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		time.Sleep(5 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted, and nobody can know that it is there")
		}
		j.set(func() { j.beatErr = nil })
		time.Sleep(2 * time.Second)
		j.set(func() { j.beatErr = auth.ErrNotWritable })
		time.Sleep(5 * fastC.MaxStaleness)
		if !f.Trusted(time.Now()) {
			t.Error("a store that became full ended trust")
		}
		// Others have given it up: its looks must be young.
		j.set(func() { j.err, j.beatErr = errors.New("away"), nil })
		j.onlyLooks()
		j.set(func() { j.beatErr = auth.ErrNotWritable })
		time.Sleep(8 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("neither heartbeat nor look, and trusted")
		}
	})
}

// TestTrust_WrittenAgain: a heartbeat that is written after others gave the
// node up does not make looks count that began before it.
func TestTrust_WrittenAgain(t *testing.T) {
	j, cfg := &fakeJournal{}, fastC
	cfg.MaxStaleness = time.Minute
	started(t, j, cfg, feed.Events{}, func(f *feed.Follower) {
		j.set(func() { j.beatErr = auth.ErrNotWritable })
		time.Sleep(3 * cfg.MaxStaleness)
		j.onlyLooks()
		j.set(func() { j.err = errors.New("away") })
		time.Sleep(8 * time.Second)
		if f.Trusted(time.Now()) {
			t.Fatal("trusted without a young look")
		}
		j.set(func() { j.beatErr = nil })
		time.Sleep(2 * time.Second) // a heartbeat is written
		if f.Trusted(time.Now()) {
			t.Error("a heartbeat made an old look count")
		}
		j.set(func() { j.err = nil })
		time.Sleep(2 * time.Second)
		if !f.Trusted(time.Now()) {
			t.Error("not trusted after a heartbeat and a look")
		}
	})
}

// TestRetire: what is still under way when a node ends brings it back neither
// to trust nor into the list of nodes.
func TestRetire(t *testing.T) {
	j := &fakeJournal{}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		f.Stop()
		f.Retire()
		_, beats := j.count()
		if err := f.LookSoon(context.Background()); err == nil {
			t.Error("looked")
		}
		if err := f.Beat(context.Background()); err == nil {
			t.Error("beat")
		}
		if _, now := j.count(); now != beats {
			t.Error("a heartbeat was written")
		}
		if f.Trusted(time.Now()) {
			t.Error("trusted")
		}
	})
}
