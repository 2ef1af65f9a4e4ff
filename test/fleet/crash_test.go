package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestCrashes_LoseAndReviveNothing kills, in every round, the process that
// makes changes, and by chance gateways and Redis. No change that was
// acknowledged is lost, no revoked key is let in again, and the journal has a
// row for every change there is.
func TestCrashes_LoseAndReviveNothing(t *testing.T) {
	rounds := 20
	if soak() {
		rounds = 200
	}
	f := startFleet(t, 2, true, "poll_interval 100ms")
	c := &crashes{f: f, t: t, keys: map[string]*crashKey{}}
	stop := c.traffic()
	for round := range rounds {
		c.round()
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	stop()
	t.Logf("%d rounds, %d changes acknowledged, %d not; killed: %d gateways, %d times Redis; %d keys revoked", rounds, c.acked, c.unacked, c.gateways, c.redis, len(c.revoked))
	if c.acked < 10*rounds || c.gateways == 0 || c.redis == 0 {
		t.Error("too little happened to show anything")
	}
}

type crashes struct {
	f       *fleet
	t       *testing.T
	keys    map[string]*crashKey // by id
	revoked []*crashKey

	mu    sync.Mutex // guards texts
	texts []string   // for the traffic

	acked, unacked, gateways, redis int
}

// crashKey is what was acknowledged of a key.
type crashKey struct {
	id, text          string
	revoked, disabled bool
}

// traffic keeps keys cached while they change.
func (c *crashes) traffic() (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	for _, g := range c.f.gateways {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
				c.mu.Lock()
				text := ""
				if n := len(c.texts); n > 0 {
					text = c.texts[max(0, n-1-rand.IntN(20))]
				}
				c.mu.Unlock()
				if text != "" {
					g.get("/", text) // no answer while it is down
				}
			}
		})
	}
	return func() { close(done); all.Wait() }
}

func (c *crashes) round() {
	lines := c.write()
	c.note(lines)
	for _, g := range c.f.gateways {
		if g.cmd.ProcessState != nil {
			g.start()
		}
	}
	for _, g := range c.f.gateways {
		g.ready()
	}
	c.checkStore(lines)
	c.checkGateways()
}

// write runs the writer for a while, kills it and others, and returns what it
// said.
func (c *crashes) write() []said {
	cmd := child(c.t, "writer", c.f.dir, c.f.file.Path())
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	enough, killGateway, killRedis := 20+rand.IntN(60), -1, -1
	if rand.IntN(2) == 0 {
		killGateway = rand.IntN(enough)
	}
	if rand.IntN(2) == 0 {
		killRedis = rand.IntN(enough)
	}
	var lines []said
	in := bufio.NewScanner(out)
	for in.Scan() {
		var s said
		if err := json.Unmarshal(in.Bytes(), &s); err != nil {
			break // cut by the kill
		}
		lines = append(lines, s)
		if s.Text != "" {
			c.mu.Lock()
			c.texts = append(c.texts, s.Text)
			c.mu.Unlock()
		}
		switch len(lines) {
		case killGateway:
			g := c.f.gateways[rand.IntN(len(c.f.gateways))]
			g.kill()
			c.gateways++
		case killRedis:
			c.f.redis.Kill()
			c.f.redis.Start()
			c.redis++
		case enough:
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if len(lines) < enough {
		c.t.Fatalf("the writer ended by itself after %d lines", len(lines))
	}
	return lines
}

// note keeps what was acknowledged.
func (c *crashes) note(lines []said) {
	for _, s := range lines {
		if !s.Done {
			continue
		}
		c.acked++
		k := c.keys[s.ID]
		if k == nil {
			k = &crashKey{id: s.ID, text: s.Text}
			c.keys[s.ID] = k
		}
		switch {
		case s.Op == "revoke" && !k.revoked:
			k.revoked = true
			c.revoked = append(c.revoked, k)
		case s.Op == "disable" || s.Op == "enable":
			k.disabled = !k.revoked && s.Op == "disable" || k.revoked && k.disabled
		}
	}
	if last := lines[len(lines)-1]; !last.Done {
		c.unacked++
		if k := c.keys[last.ID]; k != nil { // it may have been made or not
			row, err := c.f.db.KeyByID(context.Background(), k.id)
			if err != nil {
				c.t.Fatal(err)
			}
			if row.RevokedAt != 0 && !k.revoked && last.Op == "revoke" {
				k.revoked = true
				c.revoked = append(c.revoked, k)
			}
			if last.Op != "revoke" {
				k.disabled = row.DisabledAt != 0
			}
		}
	}
}

// checkStore compares the store with what was acknowledged, and its journal
// with the store.
func (c *crashes) checkStore(lines []said) {
	ctx := context.Background()
	for _, s := range lines {
		if s.Done && s.Seq != 0 {
			if f, err := c.f.db.Fleet(ctx, s.point()); err != nil || !f.There {
				c.t.Errorf("the journal row %d of an acknowledged %s is gone: %v", s.Seq, s.Op, err)
			}
		}
	}
	_, rows, err := c.f.db.Tail(ctx, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	named := map[auth.Fingerprint]map[string]bool{}
	for i, r := range rows {
		if i > 0 && r.Seq <= rows[i-1].Seq {
			c.t.Errorf("row %d after row %d", r.Seq, rows[i-1].Seq)
		}
		for _, fp := range r.Fingerprints {
			if named[fp] == nil {
				named[fp] = map[string]bool{}
			}
			named[fp][r.Kind] = true
		}
	}
	found := 0
	err = c.f.db.Keys(ctx, store.KeyFilter{}, func(row *auth.Key) error {
		kinds := named[row.Fingerprint]
		if !kinds[store.ChangeKeyCreate] || row.RevokedAt != 0 && !kinds[store.ChangeKeyRevoke] || row.DisabledAt != 0 && !kinds[store.ChangeKeyDisable] {
			c.t.Errorf("the journal hides a change of %s: %v", row.ID, kinds)
		}
		if k := c.keys[row.ID]; k != nil {
			found++
			if k.revoked != (row.RevokedAt != 0) || k.disabled != (row.DisabledAt != 0) {
				c.t.Errorf("%s: acknowledged %+v, the store has revoked %d, disabled %d", row.ID, *k, row.RevokedAt, row.DisabledAt)
			}
		}
		return nil
	})
	if err != nil || found != len(c.keys) {
		c.t.Errorf("%d of %d acknowledged keys are in the store: %v", found, len(c.keys), err)
	}
}

// checkGateways asks every gateway about keys of this round and of those
// before.
func (c *crashes) checkGateways() {
	all := make([]*crashKey, 0, len(c.keys))
	for _, k := range c.keys {
		all = append(all, k)
	}
	sample := slices.Clone(c.revoked[max(0, len(c.revoked)-10):])
	for range 20 {
		sample = append(sample, all[rand.IntN(len(all))])
		if len(c.revoked) > 0 {
			sample = append(sample, c.revoked[rand.IntN(len(c.revoked))])
		}
	}
	for _, g := range c.f.gateways {
		for _, k := range sample {
			want := http.StatusOK
			if k.revoked || k.disabled {
				want = http.StatusUnauthorized
			}
			if k.text == "" {
				continue
			}
			got := g.get("/", k.text)
			if got != want { // its last change may not have been looked at yet
				servers.Eventually(c.t, g.name+" knows the last changes", func() bool { got = g.get("/", k.text); return got == want })
			}
		}
	}
	for _, g := range c.f.gateways { // by now all has been looked at: nothing comes back
		for _, k := range c.revoked {
			if got := g.get("/", k.text); got != http.StatusUnauthorized {
				c.t.Errorf("%s answers %d to %s, which was revoked", g.name, got, k.id)
			}
		}
	}
}
