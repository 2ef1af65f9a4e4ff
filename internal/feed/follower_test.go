package feed_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/feed"
)

// fakeJournal is a journal in memory whose history can be rewritten.
type fakeJournal struct {
	mu        sync.Mutex
	epoch     auth.Epoch
	rows      []auth.Change
	nextID    byte
	err       error
	replaced  bool
	reopened  int
	reopenErr error
	looks     int
	during    func() // called in Look, before it answers
	beats     []auth.Node
	beatErr   error
	beatsGoOn bool   // err is not for heartbeats
	beating   func() // called in Beat, before it is written
	limit     int
}

func (j *fakeJournal) add(c auth.Change) auth.Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.nextID++
	c.Seq, c.Row, c.At = 1, auth.RowID{j.nextID}, time.Now().UnixMilli()
	if n := len(j.rows); n > 0 {
		c.Seq = j.rows[n-1].Seq + 1
	}
	j.rows = append(j.rows, c)
	return c
}

func (j *fakeJournal) restore(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rows = slices.Clone(j.rows[:n])
}

func (j *fakeJournal) point() auth.Point {
	j.mu.Lock()
	defer j.mu.Unlock()
	last := j.rows[len(j.rows)-1]
	return auth.Point{Epoch: j.epoch, Seq: last.Seq, Row: last.Row}
}

func (j *fakeJournal) Look(_ context.Context, cursor int64) (feed.Look, error) {
	j.mu.Lock()
	during := j.during
	j.mu.Unlock()
	if during != nil {
		during()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.looks++
	if j.replaced {
		return feed.Look{}, auth.ErrReplaced
	}
	if j.err != nil {
		return feed.Look{}, j.err
	}
	l := feed.Look{Epoch: j.epoch, First: j.rows[0].Seq, Head: j.rows[len(j.rows)-1].Seq}
	for _, r := range j.rows {
		if r.Seq == cursor {
			l.AtCursor, l.AtCursorOK = r.Row, true
		}
		if r.Seq > cursor {
			if j.limit > 0 && len(l.Rows) == j.limit {
				l.More = true
				break
			}
			l.Rows = append(l.Rows, r)
		}
	}
	return l, nil
}

func (j *fakeJournal) Tail(_ context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return auth.Epoch{}, nil, j.err
	}
	var out []auth.Change
	for i, r := range j.rows {
		if r.At >= since || i == len(j.rows)-1 {
			out = append(out, r)
		}
	}
	return j.epoch, out, nil
}

func (j *fakeJournal) NewEpoch(_ context.Context, old, next auth.Epoch) error {
	j.mu.Lock()
	if j.epoch == old {
		j.epoch = next
	}
	j.mu.Unlock()
	j.add(auth.Change{Kind: "epoch"})
	return nil
}

func (j *fakeJournal) Reopen(context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.reopenErr != nil {
		return j.reopenErr
	}
	j.replaced = false
	j.reopened++
	return nil
}

func (j *fakeJournal) Beat(_ context.Context, n auth.Node) error {
	if j.beating != nil {
		j.beating()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.beatErr
	if !j.beatsGoOn {
		err = errors.Join(j.err, err)
	}
	if err != nil {
		return err
	}
	j.beats = append(j.beats, n)
	return nil
}

// fakeTier notes what is dropped.
type fakeTier struct {
	mu      sync.Mutex
	dropped []auth.Fingerprint
	swept   []auth.Parent
	cleared int
}

func (t *fakeTier) Drop(fp auth.Fingerprint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropped = append(t.dropped, fp)
}

func (t *fakeTier) Sweep(p auth.Parent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.swept = append(t.swept, p)
}

func (t *fakeTier) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleared++
}

var (
	fpA   = auth.Fingerprint{1}
	fpB   = auth.Fingerprint{2}
	acme  = auth.Parent{Kind: auth.ParentOwner, Name: "acme"}
	ofA   = auth.Parents{acme}
	none  = auth.Parents{}
	fastC = feed.Config{PollInterval: time.Second, MaxStaleness: 10 * time.Second, Memory: time.Minute}
)

func follow(t *testing.T, j *fakeJournal, ev feed.Events) (*feed.Follower, *fakeTier) {
	t.Helper()
	tier := &fakeTier{}
	f := feed.New(j, tier, auth.Node{ID: "node_1"}, fastC, ev)
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f, tier
}

func wantFence(t *testing.T, f *feed.Follower, p auth.Point, fp auth.Fingerprint, parents auth.Parents, want feed.Fencing, why string) {
	t.Helper()
	if got := f.Fence(p, fp, parents); got != want {
		t.Errorf("%s: fence says %d, want %d", why, got, want)
	}
}

func TestFence_ChangeAboveThePoint(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	f, tier := follow(t, j, feed.Events{})
	before := j.point()
	wantFence(t, f, before, fpA, ofA, feed.Usable, "nothing happened")

	j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
	after := j.point()
	wantFence(t, f, after, fpA, ofA, feed.Ahead, "read beyond the cursor")
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantFence(t, f, before, fpA, ofA, feed.Fenced, "revoked above the point")
	wantFence(t, f, before, fpB, none, feed.Usable, "another key")
	wantFence(t, f, after, fpA, ofA, feed.Usable, "read at the revocation")
	if !slices.Equal(tier.dropped, []auth.Fingerprint{fpA}) {
		t.Errorf("dropped %v", tier.dropped)
	}

	j.add(auth.Change{Kind: "owner", Parent: acme})
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantFence(t, f, after, fpA, ofA, feed.Fenced, "the owner changed above the point")
	wantFence(t, f, after, fpA, none, feed.Usable, "a load that names no owner: negatives must carry their parents")
	if !slices.Equal(tier.swept, []auth.Parent{acme}) {
		t.Errorf("swept %v", tier.swept)
	}
}

func TestFence_PointsThatAreNotOurs(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	j.add(auth.Change{Kind: "key.create", Fingerprints: []auth.Fingerprint{fpB}})
	f, _ := follow(t, j, feed.Events{})
	p := j.point()
	for why, c := range map[string]struct {
		edit func(*auth.Point)
		want feed.Fencing
	}{
		"another epoch":               {func(p *auth.Point) { p.Epoch = auth.Epoch{8} }, feed.Ahead},
		"another row at the sequence": {func(p *auth.Point) { p.Row = auth.RowID{99} }, feed.Ahead},
		"below the floor":             {func(p *auth.Point) { p.Seq = 0 }, feed.Fenced},
		"a sequence nobody ever saw":  {func(p *auth.Point) { p.Seq = -5 }, feed.Fenced},
	} {
		q := p
		c.edit(&q)
		wantFence(t, f, q, fpA, none, c.want, why)
	}
	if got := feed.New(j, &fakeTier{}, auth.Node{ID: "node_1"}, fastC, feed.Events{}).Fence(p, fpA, none); got != feed.Fenced {
		t.Errorf("a follower that never looked: %d", got)
	}
}

func TestLook_RemembersBeforeItDrops(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	var f *feed.Follower
	var tier *fakeTier
	var before auth.Point
	checked := false
	f, tier = follow(t, j, feed.Events{Remembered: func(auth.Change) {
		checked = true
		if len(tier.dropped) != 0 {
			t.Error("dropped before it was remembered")
		}
		// A load that passes the fence now would be inserted before the drop,
		// or refused: it must be refused already.
		wantFence(t, f, before, fpA, none, feed.Fenced, "between remember and drop")
		if cursor, _ := f.Position(); cursor != before.Seq {
			t.Error("the cursor moved before the drop")
		}
	}})
	before = j.point()
	j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !checked {
		t.Error("the change was not applied")
	}
}

func TestLook_ReadsOnWhenThereIsMore(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}, limit: 2}
	j.add(auth.Change{Kind: "init"})
	f, tier := follow(t, j, feed.Events{})
	for range 5 {
		j.add(auth.Change{Kind: "key.edit", Fingerprints: []auth.Fingerprint{fpA}})
	}
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(tier.dropped) != 5 {
		t.Errorf("dropped %d times, want 5", len(tier.dropped))
	}
}

func TestLook_StoreWentBackInTime(t *testing.T) {
	for name, damage := range map[string]func(j *fakeJournal){
		"shorter":             func(j *fakeJournal) { j.restore(1) },
		"another row":         func(j *fakeJournal) { j.restore(1); j.add(auth.Change{Kind: "other"}) },
		"another row, longer": func(j *fakeJournal) { j.restore(1); j.add(auth.Change{}); j.add(auth.Change{}) },
		"epoch":               func(j *fakeJournal) { j.epoch = auth.Epoch{7} },
		"file replaced":       func(j *fakeJournal) { j.replaced = true },
	} {
		t.Run(name, func(t *testing.T) {
			j := &fakeJournal{epoch: auth.Epoch{9}}
			j.add(auth.Change{Kind: "init"})
			j.add(auth.Change{Kind: "key.create", Fingerprints: []auth.Fingerprint{fpA}})
			lost := ""
			f, tier := follow(t, j, feed.Events{LostHistory: func(why string) { lost = why }})
			old := j.point()
			cleared := tier.cleared
			damage(j)
			if err := f.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if lost == "" {
				t.Fatal("not noticed")
			}
			if tier.cleared == cleared {
				t.Error("the caches were not emptied")
			}
			if j.reopened != 1 {
				t.Error("the store was not reopened")
			}
			if j.epoch == old.Epoch {
				t.Error("no new epoch")
			}
			wantFence(t, f, old, fpA, none, feed.Ahead, "a load of the old history")
			wantFence(t, f, j.point(), fpA, none, feed.Usable, "a load of the new history")
			if !f.Trusted(time.Now()) {
				t.Error("not trusted after it started over")
			}
		})
	}
}

// A restore that is caught half-way must not keep the gateway at 503 for ever.
func TestLook_StartingOverIsTriedAgain(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	f, _ := follow(t, j, feed.Events{})
	old := j.point()
	j.replaced, j.reopenErr = true, errors.New("an empty file")
	for range 3 {
		if err := f.Look(t.Context()); err == nil || f.Trusted(time.Now()) {
			t.Fatalf("looked at a store that can't be opened: %v", err)
		}
	}
	j.reopenErr = nil
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if j.epoch == old.Epoch || !f.Trusted(time.Now()) {
		t.Errorf("epoch %v, trusted %v", j.epoch, f.Trusted(time.Now()))
	}
	wantFence(t, f, old, fpA, none, feed.Ahead, "a load of the old history")
}

func TestLook_JournalPrunedPastTheCursor(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	f, tier := follow(t, j, feed.Events{LostHistory: func(why string) { t.Errorf("taken for a lost history: %s", why) }})
	before := j.point()
	cleared := tier.cleared
	for range 3 {
		j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
	}
	j.mu.Lock()
	j.rows = j.rows[3:]
	j.mu.Unlock()
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if tier.cleared == cleared {
		t.Error("changes were missed and the caches kept")
	}
	wantFence(t, f, before, fpA, none, feed.Fenced, "read before the missed changes")
}

func TestTrust_EndsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &fakeJournal{epoch: auth.Epoch{9}}
		j.add(auth.Change{Kind: "init"})
		f := feed.New(j, &fakeTier{}, auth.Node{ID: "node_1"}, fastC, feed.Events{})
		if f.Trusted(time.Now()) {
			t.Error("trusted before the first look")
		}
		f.Start()
		defer f.Stop()
		synctest.Wait()
		if !f.Trusted(time.Now()) {
			t.Fatal("not trusted after a look")
		}
		j.mu.Lock()
		j.err = errors.New("away")
		j.mu.Unlock()
		time.Sleep(fastC.MaxStaleness - time.Second)
		if !f.Trusted(time.Now()) {
			t.Error("not trusted within max_staleness")
		}
		time.Sleep(2 * time.Second)
		if f.Trusted(time.Now()) {
			t.Error("trusted after max_staleness without a look")
		}
		j.mu.Lock()
		j.err = nil
		j.mu.Unlock()
		time.Sleep(2 * fastC.PollInterval)
		if !f.Trusted(time.Now()) {
			t.Error("did not recover by itself")
		}
	})
}

func TestTrust_WallClockThatJumpedAhead(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	f, _ := follow(t, j, feed.Events{})
	// A machine that slept: the monotonic clock stood still. Round(0) leaves
	// only the wall clock, moved ahead.
	if age := f.Age(time.Now().Round(0).Add(time.Hour)); age < 59*time.Minute {
		t.Errorf("age %s after an hour's sleep", age)
	}
}

func TestForget_RaisesTheFloorInTheSameStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &fakeJournal{epoch: auth.Epoch{9}}
		j.add(auth.Change{Kind: "init"})
		f, _ := follow(t, j, feed.Events{})
		before := j.point()
		j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
		_ = f.Look(t.Context())
		time.Sleep(2 * fastC.Memory)
		j.add(auth.Change{Kind: "other"})
		_ = f.Look(t.Context())
		cursor, floor := f.Position()
		if floor == before.Seq {
			t.Fatal("nothing was forgotten")
		}
		if floor > cursor {
			t.Fatalf("floor %d above the cursor %d", floor, cursor)
		}
		wantFence(t, f, before, fpA, none, feed.Fenced, "the revocation is forgotten, so the floor must refuse")
		wantFence(t, f, j.point(), fpA, none, feed.Usable, "read at the head")
	})
}

func TestLookSoon_BeginsAfterTheCall(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{9}}
	j.add(auth.Change{Kind: "init"})
	f, _ := follow(t, j, feed.Events{})
	// A look is under way and has read the journal already; a change commits;
	// whoever asks now must not be content with that look.
	inLook, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	j.during = func() {
		once.Do(func() { close(inLook); <-goOn })
	}
	first := make(chan error, 1)
	go func() { first <- f.LookSoon(t.Context()) }()
	<-inLook
	second := make(chan error, 1)
	go func() { second <- f.LookSoon(t.Context()) }()
	change := j.add(auth.Change{Kind: "key.revoke", Fingerprints: []auth.Fingerprint{fpA}})
	close(goOn)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Fatal(err)
	}
	if cursor, _ := f.Position(); cursor != change.Seq {
		t.Errorf("cursor %d, want %d", cursor, change.Seq)
	}
}

// TestLook_LearnsBeforeItMoves: what is known of a change besides is known
// before anything that is read afterwards passes the fence.
func TestLook_LearnsBeforeItMoves(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{1}}
	j.add(auth.Change{})
	var f *feed.Follower
	learnt := 0
	events := feed.Events{Learning: func(c auth.Change) {
		learnt++
		if cursor, _ := f.Position(); cursor >= c.Seq {
			t.Errorf("change %d is learnt with the cursor at %d", c.Seq, cursor)
		}
		if p, ok := f.Point(); !ok || p.Seq >= c.Seq {
			t.Errorf("change %d is learnt when what is read counts as read at %d", c.Seq, p.Seq)
		}
	}}
	f, _ = follow(t, j, events)
	subject := auth.Parent{Kind: auth.ParentSubject, Name: "corp:alice"}
	before, _ := f.Point()
	j.add(auth.Change{Parent: subject})
	if err := f.Look(t.Context()); err != nil || learnt != 1 {
		t.Fatalf("%v, learnt %d", err, learnt)
	}
	wantFence(t, f, before, auth.Fingerprint{1}, auth.Parents{subject}, feed.Fenced, "read before it")
	after, _ := f.Point()
	wantFence(t, f, after, auth.Fingerprint{1}, auth.Parents{subject}, feed.Usable, "read after it")
	if after != j.point() {
		t.Errorf("the point is %+v, want %+v", after, j.point())
	}
}

// TestBoot_ReadsAfterTheTail: a change that comes while a gateway starts is
// either in what it reads then, or comes with the next look.
func TestBoot_ReadsAfterTheTail(t *testing.T) {
	j := &fakeJournal{epoch: auth.Epoch{1}}
	j.add(auth.Change{})
	var learnt []int64
	f, _ := follow(t, j, feed.Events{
		Booted: func(context.Context) error {
			j.add(auth.Change{Parent: auth.Parent{Kind: auth.ParentToken, Name: "corp:1"}})
			return nil
		},
		Learning: func(c auth.Change) { learnt = append(learnt, c.Seq) },
	})
	if cursor, _ := f.Position(); cursor != 1 {
		t.Errorf("the cursor is at %d: the change is never learnt", cursor)
	}
	if err := f.Look(t.Context()); err != nil || !slices.Equal(learnt, []int64{2}) {
		t.Errorf("%v, learnt %v", err, learnt)
	}
}
