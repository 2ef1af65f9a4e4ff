package feed_test

import (
	"context"
	"errors"
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
		looks := j.looks
		time.Sleep(fastC.MaxStaleness + time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted although no heartbeat was confirmed")
		}
		if j.looks == looks {
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
	told := 0
	started(t, j, fastC, feed.Events{BeatFailed: func(error) { told++ }}, func(f *feed.Follower) {
		j.set(func() { j.beatErr = auth.ErrNotWritable })
		time.Sleep(10 * fastC.MaxStaleness)
		if !f.Trusted(time.Now()) {
			t.Error("a full disk ended trust")
		}
		if told < 10 {
			t.Errorf("told %d times", told)
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
	var acked int64 // when the change was remembered and not dropped yet
	started(t, j, fastC, feed.Events{Remembered: func(c auth.Change) {
		time.Sleep(300 * time.Millisecond) // heartbeats go on meanwhile
		acked = max(acked, c.Seq-j.beats[len(j.beats)-1].Seq)
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
		if acked != 1 {
			t.Error("acknowledged before it was dropped")
		}
		beats := len(j.beats)
		time.Sleep(10 * fastC.MaxStaleness)
		if n := len(j.beats) - beats; n < 95 || n > 105 {
			t.Errorf("%d heartbeats in ten max_staleness, want ten each", n)
		}
	})
}

// TestRing_Flood: somebody rings without end; the store is read little, and a
// change is seen soon all the same.
func TestRing_Flood(t *testing.T) {
	j := &fakeJournal{}
	var news, nothing int
	started(t, j, fastC, feed.Events{Rung: func(n bool) {
		if n {
			news++
		} else {
			nothing++
		}
	}}, func(f *feed.Follower) {
		before := j.looks
		flood := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
				f.Ring()
			}
		}
		flood(10 * time.Second)
		if n := j.looks - before; n > 60 {
			t.Errorf("%d looks in 10 s, one a second without the flood", n)
		}
		c := j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
		flood(350 * time.Millisecond)
		if cursor, _ := f.Position(); cursor != c.Seq {
			t.Error("a change was not seen in the flood")
		}
		if news > 1 || nothing < 20 { // the poll may have been quicker
			t.Errorf("rung with news %d, with nothing %d", news, nothing)
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

// TestTrust_NotWritable: a store that is full changes for nobody; one that only
// this node may not write can change without it.
func TestTrust_NotWritable(t *testing.T) {
	full, forbidden := auth.ErrNotWritable, errors.Join(auth.ErrNotWritable, auth.ErrForbidden)
	j := &fakeJournal{beatErr: full}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		if !f.Trusted(time.Now()) {
			t.Error("a gateway that starts on a full disk is not trusted")
		}
		// Others may have given it up: its looks must be young.
		j.set(func() { j.err = errors.New("away") })
		time.Sleep(3 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("neither heartbeat nor look, and trusted")
		}
	})
	j = &fakeJournal{beatErr: forbidden}
	started(t, j, fastC, feed.Events{}, func(f *feed.Follower) {
		time.Sleep(5 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted, and nobody can know that it is there")
		}
		j.set(func() { j.beatErr = nil })
		time.Sleep(2 * time.Second)
		j.set(func() { j.beatErr = forbidden }) // remounted read-only
		time.Sleep(5 * fastC.MaxStaleness)
		if !f.Trusted(time.Now()) {
			t.Error("a store that became read-only ended trust")
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
		beats := len(j.beats)
		if err := f.LookSoon(context.Background()); err == nil {
			t.Error("looked")
		}
		if err := f.Beat(context.Background()); err == nil || len(j.beats) != beats {
			t.Error("wrote a heartbeat")
		}
		if f.Trusted(time.Now()) {
			t.Error("trusted")
		}
	})
}
