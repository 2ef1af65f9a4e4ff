package machine

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

func wantVerdict(t *testing.T, v auth.Verdict, want auth.Outcome, why string) {
	t.Helper()
	if v.Outcome != want {
		t.Errorf("%s: outcome %d (%s, %v), want %d", why, v.Outcome, v.Reason, v.Cause, want)
	}
}

func wantMissing(t *testing.T, w *world, n *node, why string) *manage.MissingError {
	t.Helper()
	_, err := w.acknowledged()
	var missing *manage.MissingError
	if !errors.As(err, &missing) || len(missing.Missing) != 1 || missing.Missing[0].Name != n.name {
		t.Fatalf("%s: %v, want %s missing", why, err, n.name)
	}
	return missing
}

func wantAcknowledged(t *testing.T, w *world, nodes int, why string) {
	t.Helper()
	if got, err := w.acknowledged(); err != nil || got != nodes {
		t.Fatalf("%s: %d gateways, %v; want %d", why, got, err, nodes)
	}
}

// Row "remember before drop": a load that was read before a revoke lands
// between the two.
func TestRow_RememberBeforeDrop(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		a, k := w.nodes[0], w.create("acme", 0)
		a.look()
		answer := a.request(k)
		w.pass(a, "load reads")
		w.revoke(k)
		look := a.start(a.follower.Look)
		w.pass(a, "look reads")
		w.pass(a, "look has read")
		w.pass(a, "load has read") // it lands now, or not
		w.pass(a, "remembered")
		w.pass(a, "dropped")
		w.must(<-look)
		for range 6 { // it looks, then loads again
			w.stops.release(a)
		}
		wantVerdict(t, <-answer, auth.Deny, "the request that waited")
		wantVerdict(t, a.verify(k), auth.Deny, "a later one")
	})
}

// Row "acknowledgement as (sequence, row id)": after a restore the sequence of
// an old acknowledgement stands for another row.
func TestRow_AcknowledgementOfAnUndoneHistory(t *testing.T) {
	for name, sameEpoch := range map[string]bool{"as store restore does": false, "with the epoch of before": true} {
		t.Run(name, func(t *testing.T) {
			run(t, 1, func(t *testing.T, w *world) {
				a, k := w.nodes[0], w.create("acme", 0)
				a.look()
				backup := w.backup()
				for range 3 {
					w.create("other", 0)
				}
				a.look()
				a.do(func() { w.must(a.follower.Beat(t.Context())) })
				wantAcknowledged(t, w, 1, "before the restore")
				wantVerdict(t, a.verify(k), auth.Allow, "cached")
				w.restore(backup, sameEpoch)
				w.revoke(k) // at a sequence that was acknowledged before
				wantMissing(t, w, a, "an acknowledgement of the undone history")
				a.look()
				if sameEpoch { // the gateway began a new one: who waits must look what is left
					if _, err := w.acknowledged(); !errors.Is(err, manage.ErrUndone) {
						t.Errorf("%v", err)
					}
					w.ops = w.operator()
				}
				wantAcknowledged(t, w, 1, "once it has started over")
				wantVerdict(t, a.verify(k), auth.Deny, "after --wait")
			})
		})
	}
}

// Rows "trust needs a confirmed heartbeat, then a look" and "dead only after
// max_staleness": a gateway that was cut off is waited for and named until it
// refuses by itself, and after that it trusts nothing that it read before.
func TestRow_PartitionedGateway(t *testing.T) {
	run(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		k := w.create("acme", 0)
		a.look()
		b.look()
		wantVerdict(t, a.verify(k), auth.Allow, "before")
		a.away = true
		time.Sleep(10 * time.Second)
		w.revoke(k)
		b.look()
		b.do(func() { w.must(b.follower.Beat(t.Context())) })
		missing := wantMissing(t, w, a, "cut off")
		wantVerdict(t, a.verify(k), auth.Allow, "cut off, within max_staleness")
		refuses := time.UnixMilli(missing.Missing[0].RefusesBy)
		if left := time.Until(refuses); left <= 0 || left > maxStaleness {
			t.Fatalf("it is said to refuse in %s", left)
		}
		time.Sleep(time.Until(refuses))
		wantVerdict(t, a.verify(k), auth.CannotDecide, "at the time that was told")
		wantMissing(t, w, a, "it refuses, but its clock may be slow")
		b.do(func() { w.must(b.follower.Beat(t.Context())) })
		time.Sleep(maxStaleness/10 + 6*time.Second)
		wantAcknowledged(t, w, 1, "given up")
		a.away = false
		wantVerdict(t, a.verify(k), auth.CannotDecide, "back, but it has not looked")
		a.do(func() { w.must(a.follower.Beat(t.Context())) })
		wantVerdict(t, a.verify(k), auth.CannotDecide, "a heartbeat is not enough")
		a.look()
		wantVerdict(t, a.verify(k), auth.Deny, "it has looked")
		a.do(func() { w.must(a.follower.Beat(t.Context())) })
		wantAcknowledged(t, w, 2, "back")
	})
}

// TestRow_LookBegunBeforeTheHeartbeat: a look that began before the gateway
// was given up and ends after its next heartbeat counts for nothing.
func TestRow_LookBegunBeforeTheHeartbeat(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		a, k := w.nodes[0], w.create("acme", 0)
		a.look()
		wantVerdict(t, a.verify(k), auth.Allow, "before")
		time.Sleep(maxStaleness - time.Second)
		look := a.start(a.follower.Look)
		w.pass(a, "look reads") // what it read is as old as that
		time.Sleep(maxStaleness/10 + 7*time.Second)
		w.revoke(k)
		wantAcknowledged(t, w, 0, "given up")
		beat := a.start(a.follower.Beat)
		w.pass(a, "beat writes")
		w.pass(a, "beat was written")
		w.must(<-beat)
		w.pass(a, "look has read")
		select { // it begins again
		case err := <-look:
			t.Errorf("the look ended: %v", err)
		default:
		}
		wantVerdict(t, a.verify(k), auth.CannotDecide, "after the old look")
		w.pass(a, "look reads")
		w.pass(a, "look has read")
		w.pass(a, "remembered")
		w.pass(a, "dropped")
		w.must(<-look)
		wantVerdict(t, a.verify(k), auth.Deny, "after the new look")
	})
}

// TestRow_HeartbeatWhoseConfirmationIsLost: the store heard of the gateway, the
// gateway does not know it: it must not trust on it.
func TestRow_HeartbeatWhoseConfirmationIsLost(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		a, k := w.nodes[0], w.create("acme", 0)
		a.look()
		wantVerdict(t, a.verify(k), auth.Allow, "before")
		time.Sleep(maxStaleness / 2)
		beat := a.start(a.follower.Beat)
		w.pass(a, "beat writes")
		a.away = true
		w.pass(a, "beat was written")
		if err := <-beat; err == nil {
			t.Fatal("confirmed")
		}
		a.away = false
		a.look() // the looks are good all the time
		time.Sleep(maxStaleness / 2)
		wantVerdict(t, a.verify(k), auth.CannotDecide, "max_staleness after the confirmed one")
		a.look()
		wantVerdict(t, a.verify(k), auth.Allow, "after heartbeat and look")
	})
}

// Row "start as at boot after a detected restore": loads pass again at once,
// whatever the old head was.
func TestRow_LoadsPassAfterARestore(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		a, k := w.nodes[0], w.create("acme", 0)
		backup := w.backup()
		for range 20 {
			w.create("other", 0)
		}
		a.look()
		time.Sleep(2 * sharedTTL) // what happened is forgotten, the floor is high
		a.look()
		w.restore(backup, true)
		a.look()
		wantVerdict(t, a.verify(k), auth.Allow, "after the restore")
		w.revoke(k)
		a.look()
		wantVerdict(t, a.verify(k), auth.Deny, "revoked after it")
	})
}

// TestRow_NobodyIsLive: --wait says so.
func TestRow_NobodyIsLive(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		k := w.create("acme", 0)
		wantAcknowledged(t, w, 0, "before any gateway")
		a := w.nodes[0]
		a.look()
		a.do(func() { w.must(a.follower.Beat(t.Context())) })
		w.revoke(k)
		wantMissing(t, w, a, "it has not looked")
		w.must(a.db.Leave(t.Context(), a.follower.Node().ID))
		wantAcknowledged(t, w, 0, "it left")
	})
}

// TestRow_GatewayThatStartsMeanwhile: it is waited for from its first
// heartbeat on, and what it answers is what it looked at after that.
func TestRow_GatewayThatStartsMeanwhile(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		k := w.create("acme", 0)
		a := w.nodes[0]
		look := a.start(a.follower.Look)
		w.pass(a, "beat writes")
		w.pass(a, "beat was written")
		select { // boot reads the tail without a stop
		case err := <-look:
			w.must(err)
		default:
			t.Fatal("not booted")
		}
		w.revoke(k)
		wantMissing(t, w, a, "it read the journal before")
		a.look()
		a.do(func() { w.must(a.follower.Beat(t.Context())) })
		wantAcknowledged(t, w, 1, "it looked")
		wantVerdict(t, a.verify(k), auth.Deny, "after --wait")
	})
}

// TestRow_BulkChangeIsOneRow: all keys of an owner go with one row, and others
// stay cached.
func TestRow_BulkChangeIsOneRow(t *testing.T) {
	run(t, 1, func(t *testing.T, w *world) {
		var of, others []*key
		for range 5 {
			of, others = append(of, w.create("acme", 0)), append(others, w.create("other", 0))
		}
		a := w.nodes[0]
		a.look()
		for i := range of {
			wantVerdict(t, a.verify(of[i]), auth.Allow, "before")
			wantVerdict(t, a.verify(others[i]), auth.Allow, "before")
		}
		before, _ := a.follower.Position()
		if n, err := w.ops.RevokeOwner(t.Context(), "acme", ""); err != nil || n != 5 {
			t.Fatal(n, err)
		}
		a.look()
		if after, _ := a.follower.Position(); after != before+1 {
			t.Errorf("%d rows", after-before)
		}
		if good, _ := a.memory.Len(); good != len(others) {
			t.Errorf("%d cached", good)
		}
		for i := range of {
			wantVerdict(t, a.verify(of[i]), auth.Deny, "of the owner")
			wantVerdict(t, a.verify(others[i]), auth.Allow, "of another")
		}
	})
}

// TestRow_ClocksTenMinutesApart: expiry goes by each gateway's clock, all else
// by none.
func TestRow_ClocksTenMinutesApart(t *testing.T) {
	run(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		k, ending := w.create("acme", 0), w.create("acme", 15*time.Minute)
		for _, n := range w.nodes {
			n.look()
			n.do(func() { w.must(n.follower.Beat(t.Context())) })
		}
		wantAcknowledged(t, w, 2, "the slow and the fast clock")
		wantVerdict(t, a.verify(k), auth.Allow, "slow")
		wantVerdict(t, b.verify(k), auth.Allow, "fast")
		wantVerdict(t, b.verify(ending), auth.Allow, "fast, five minutes left")
		w.revoke(k)
		_, err := w.acknowledged()
		var missing *manage.MissingError
		if !errors.As(err, &missing) || len(missing.Missing) != 2 {
			t.Fatalf("%v", err)
		}
		for _, m := range missing.Missing { // told by the store's clock, for both
			if left := time.Until(time.UnixMilli(m.RefusesBy)); left <= 0 || left > maxStaleness {
				t.Errorf("%s refuses in %s", m.Name, left)
			}
		}
		for _, n := range w.nodes {
			n.look()
			wantVerdict(t, n.verify(k), auth.Deny, n.name)
		}
		time.Sleep(6 * time.Minute)
		for _, n := range w.nodes {
			n.look()
		}
		wantVerdict(t, a.verify(ending), auth.Allow, "nine minutes left")
		wantVerdict(t, b.verify(ending), auth.Deny, "expired by its clock")
		synctest.Wait()
	})
}
