package manage_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

type fakeBell struct {
	rung int
	err  error
}

func (b *fakeBell) Ring(context.Context) error { b.rung++; return b.err }

func TestChange_Rings(t *testing.T) {
	m, _ := open(t)
	bell := &fakeBell{}
	m.SetBell(bell)
	if _, wrote := m.Wrote(); wrote {
		t.Error("wrote before the first change")
	}
	made, err := m.Create(t.Context(), manage.KeySpec{Owner: "acme"})
	must(t, err)
	first, _ := m.Wrote()
	_, err = m.Revoke(t.Context(), []string{made.Key.ID}, "")
	must(t, err)
	second, _ := m.Wrote()
	if bell.rung != 2 || second.Seq != first.Seq+1 || m.Unheard() != nil {
		t.Errorf("rung %d times, %d then %d", bell.rung, first.Seq, second.Seq)
	}
	_, err = m.Revoke(t.Context(), []string{made.Key.ID}, "") // no change
	must(t, err)
	if third, _ := m.Wrote(); bell.rung != 2 || third != second {
		t.Error("rung for nothing")
	}
	bell.err = errors.New("away")
	_, err = m.Create(t.Context(), manage.KeySpec{Owner: "acme"})
	must(t, err) // the change is made all the same
	if m.Unheard() == nil {
		t.Error("nobody is told that the bell was not heard")
	}
}

func TestWait(t *testing.T) {
	m, db := open(t)
	ctx := t.Context()
	// Nothing written: everything there is.
	ack, err := m.Wait(ctx)
	must(t, err)
	if ack.Nodes != 0 {
		t.Errorf("%+v", ack)
	}
	node := func(name string, p auth.Point) auth.Node {
		return auth.Node{ID: "node_" + name, Name: name, MaxStaleness: time.Minute, Seq: p.Seq, Row: p.Row}
	}
	_, err = m.Create(ctx, manage.KeySpec{Owner: "acme"})
	must(t, err)
	p, _ := m.Wrote()
	must(t, db.Beat(ctx, node("quick", p)))
	must(t, db.Beat(ctx, node("slow", auth.Point{})))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = m.Wait(short)
	var missing *manage.MissingError
	if !errors.As(err, &missing) || missing.Of != 2 || len(missing.Missing) != 1 || missing.Missing[0].Name != "slow" {
		t.Fatalf("%v", err)
	}
	by := time.UnixMilli(missing.Missing[0].RefusesBy)
	if left := time.Until(by); left < 50*time.Second || left > time.Minute {
		t.Errorf("it refuses in %s", left)
	}
	if text := err.Error(); !strings.Contains(text, "1 of 2 gateways") || !strings.Contains(text, "slow (node_slow)") || !strings.Contains(text, by.UTC().Format(time.RFC3339)) {
		t.Errorf("%s", text)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		ack, err = m.Wait(ctx)
		done <- err
	}()
	must(t, db.Beat(ctx, node("slow", p)))
	must(t, <-done)
	if ack.Nodes != 2 || ack.Slowest == "" {
		t.Errorf("%+v", ack)
	}
	must(t, db.NewEpoch(ctx, p.Epoch, auth.Epoch{1}))
	if _, err := m.Wait(ctx); !errors.Is(err, manage.ErrUndone) {
		t.Errorf("%v", err)
	}
}
