package stream_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/stream"
)

// judge is a verifier that says what it is told.
type judge struct {
	mu       sync.Mutex
	verdicts map[auth.Fingerprint]auth.Verdict
	stale    bool
	asked    int
	during   func()
}

func (j *judge) VerifyAgain(_ context.Context, fp auth.Fingerprint, _ *auth.Identity, _ time.Time) auth.Verdict {
	if j.during != nil {
		j.during()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked++
	return j.verdicts[fp]
}

func (j *judge) Trusted(time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.stale
}

func (j *judge) say(fp auth.Fingerprint, v auth.Verdict) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.verdicts[fp] = v
}

// request is something under way.
type request struct {
	stream.Stream
	id    auth.Identity
	mu    sync.Mutex
	ended []string
}

func (r *request) Identity() *auth.Identity { return &r.id }

func (r *request) End(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, reason)
}

var (
	fpA, fpB = auth.Fingerprint{1}, auth.Fingerprint{2}
	allow    = auth.Verdict{Outcome: auth.Allow}
)

func in(t *testing.T, test func(r *stream.Registry, j *judge, add func(fp auth.Fingerprint, owner string) *request)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		j := &judge{verdicts: map[auth.Fingerprint]auth.Verdict{fpA: allow, fpB: allow}}
		r := stream.NewRegistry(j)
		r.Start()
		test(r, j, func(fp auth.Fingerprint, owner string) *request {
			q := &request{id: auth.Identity{Method: auth.MethodAPIKey, Subject: owner}}
			r.Add(&q.Stream, q, fp, time.Time{}, r.Changes())
			return q
		})
		r.Stop()
		r.Stop()
	})
}

func wantEnded(t *testing.T, q *request, reason, why string) {
	t.Helper()
	synctest.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	if want := []string{reason}; reason == "" && len(q.ended) > 0 || reason != "" && !slices.Equal(q.ended, want) {
		t.Errorf("%s: ended with %v, want %q", why, q.ended, reason)
	}
}

func TestRegistry_EndsWhatAChangeEnds(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, add func(auth.Fingerprint, string) *request) {
		a, a2, b, gone := add(fpA, "acme"), add(fpA, "acme"), add(fpB, "acme"), add(fpA, "acme")
		r.Remove(&gone.Stream)
		r.Remove(&gone.Stream)
		if r.Len() != 3 {
			t.Errorf("%d under way", r.Len())
		}
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		wantEnded(t, a, "", "changed, but it still holds")
		j.say(fpA, auth.Denied(auth.ReasonRevoked))
		wantEnded(t, a, "", "no change")
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		wantEnded(t, a, "revoked", "revoked")
		wantEnded(t, a2, "revoked", "revoked")
		wantEnded(t, b, "", "another key")
		wantEnded(t, gone, "", "gone before")
		j.say(fpB, auth.Denied(auth.ReasonOwnerDisabled))
		r.Applied(auth.Change{Parent: auth.Parent{Kind: auth.ParentOwner, Name: "other"}})
		wantEnded(t, b, "", "another owner")
		r.Applied(auth.Change{Parent: auth.Parent{Kind: auth.ParentOwner, Name: "acme"}})
		wantEnded(t, b, "owner_disabled", "owner disabled")
		wantEnded(t, a, "revoked", "ended once")
	})
}

// TestRegistry_ChangeBetweenVerificationAndAdd: the change was applied after
// the credential was verified and before the request was under way.
func TestRegistry_ChangeBetweenVerificationAndAdd(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, _ func(auth.Fingerprint, string) *request) {
		seen := r.Changes()
		j.say(fpA, auth.Denied(auth.ReasonRevoked))
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		q := &request{}
		r.Add(&q.Stream, q, fpA, time.Time{}, seen)
		wantEnded(t, q, "revoked", "revoked meanwhile")
	})
}

// TestRegistry_ChangeWhileItIsVerifiedAgain is applied after the store was
// read: it must be verified once more.
func TestRegistry_ChangeWhileItIsVerifiedAgain(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, add func(auth.Fingerprint, string) *request) {
		q := add(fpA, "acme")
		reading, goOn := make(chan struct{}), make(chan struct{})
		j.during = func() { reading <- struct{}{}; <-goOn }
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		<-reading
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		goOn <- struct{}{} // the first reading: it still held
		<-reading
		j.say(fpA, auth.Denied(auth.ReasonRevoked))
		goOn <- struct{}{}
		wantEnded(t, q, "revoked", "the second change")
	})
}

func TestRegistry_Undecided(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, add func(auth.Fingerprint, string) *request) {
		q := add(fpA, "acme")
		j.say(fpA, auth.Undecided(auth.ErrUnavailable))
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		time.Sleep(10 * time.Second)
		wantEnded(t, q, "", "nobody can tell yet")
		j.say(fpA, auth.Denied(auth.ReasonRevoked))
		time.Sleep(time.Second)
		wantEnded(t, q, "revoked", "it can be told")
		other := add(fpB, "acme")
		stale := func(yes bool) {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.stale = yes
		}
		for range 20 { // as when a gateway starts over, whenever that is
			stale(true)
			time.Sleep(300 * time.Millisecond)
			stale(false)
			time.Sleep(750 * time.Millisecond)
		}
		wantEnded(t, other, "", "trust came back at once")
		stale(true)
		time.Sleep(1500 * time.Millisecond)
		wantEnded(t, other, stream.ReasonStale, "trust ended")
	})
}

func TestRegistry_ExpiryAndGrace(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, _ func(auth.Fingerprint, string) *request) {
		begin := func(fp auth.Fingerprint, ends time.Duration, began time.Time) *request {
			q := &request{id: auth.Identity{NotAfter: time.Now().Add(ends).UnixMilli()}}
			r.Add(&q.Stream, q, fp, began, r.Changes())
			return q
		}
		q := begin(fpA, 10*time.Second, time.Now())
		time.Sleep(9 * time.Second)
		wantEnded(t, q, "", "before it expires")
		time.Sleep(2 * time.Second)
		wantEnded(t, q, "expired", "after it")
		// A request that is answered soon is no stream.
		young, socket := begin(fpB, time.Hour, time.Now()), begin(fpB, time.Hour, time.Time{})
		j.say(fpB, auth.Denied(auth.ReasonRevoked))
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpB}})
		wantEnded(t, young, "", "just begun")
		wantEnded(t, socket, "revoked", "a stream from its beginning")
		time.Sleep(stream.Grace + 200*time.Millisecond)
		wantEnded(t, young, "revoked", "after its grace")
		// An edit may bring the expiry nearer.
		j.say(fpA, auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{NotAfter: time.Now().Add(time.Second).UnixMilli()}})
		edited := begin(fpA, time.Hour, time.Time{})
		r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fpA}})
		time.Sleep(2 * time.Second)
		wantEnded(t, edited, "expired", "its expiry was brought forward")
	})
}

func TestRegistry_NobodyKnowsWhatChanged(t *testing.T) {
	in(t, func(r *stream.Registry, j *judge, add func(auth.Fingerprint, string) *request) {
		a, b := add(fpA, "acme"), add(fpB, "other")
		j.say(fpA, auth.Denied(auth.ReasonUnknown))
		r.DoubtAll()
		wantEnded(t, a, "unknown", "of an undone history")
		wantEnded(t, b, "", "still there")
		r.EndAll(stream.ReasonStopped)
		wantEnded(t, b, stream.ReasonStopped, "the end")
	})
}

// TestRegistry_ComingAndGoing is for the race detector.
func TestRegistry_ComingAndGoing(t *testing.T) {
	j := &judge{verdicts: map[auth.Fingerprint]auth.Verdict{fpA: allow, fpB: auth.Denied(auth.ReasonRevoked)}}
	r := stream.NewRegistry(j)
	r.Start()
	defer r.Stop()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 2000 {
				fp := fpA
				if i%2 == 0 {
					fp = fpB
				}
				q := &request{}
				r.Add(&q.Stream, q, fp, time.Time{}, r.Changes())
				r.Applied(auth.Change{Fingerprints: []auth.Fingerprint{fp}})
				r.Remove(&q.Stream)
				if fp == fpA {
					q.mu.Lock()
					if len(q.ended) > 0 {
						t.Error("a good one was ended")
					}
					q.mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if r.Len() != 0 {
		t.Errorf("%d left", r.Len())
	}
}

// TestRegistry_Sessions: what seems to have expired is verified again where its
// end moves with its use, and ends only then.
func TestRegistry_Sessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &judge{verdicts: map[auth.Fingerprint]auth.Verdict{}}
		r := stream.NewRegistry(j)
		r.Start()
		defer r.Stop()
		fp := auth.FingerprintOf("s")
		q := &request{id: auth.Identity{Method: auth.MethodSession, NotAfter: time.Now().Add(time.Minute).UnixMilli()}}
		r.Add(&q.Stream, q, fp, time.Time{}, r.Changes())
		later := q.id
		later.NotAfter = time.Now().Add(10 * time.Minute).UnixMilli()
		j.say(fp, auth.Verdict{Outcome: auth.Allow, Identity: later})
		ended := func() []string {
			q.mu.Lock()
			defer q.mu.Unlock()
			return slices.Clone(q.ended)
		}
		time.Sleep(5 * time.Minute)
		j.mu.Lock()
		asked := j.asked
		j.mu.Unlock()
		if ended() != nil || asked != 1 {
			t.Errorf("ended %q, asked %d times", ended(), asked)
		}
		j.say(fp, auth.Denied(auth.ReasonExpired))
		time.Sleep(6 * time.Minute)
		if got := ended(); len(got) != 1 || got[0] != "expired" {
			t.Errorf("ended %q", got)
		}
	})
}
