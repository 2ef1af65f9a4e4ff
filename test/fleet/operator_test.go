package fleet

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// nodes is what caddy-auth nodes says, by name's process.
func (f *fleet) nodes() map[string]map[string]any {
	f.t.Helper()
	out, _ := f.must("nodes", "--json")
	all := map[string]map[string]any{}
	for line := range strings.Lines(out) {
		var n map[string]any
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			f.t.Fatalf("%q: %v", line, err)
		}
		all[n["name"].(string)] = n
	}
	return all
}

// TestOperator_NodesAndWait: gateways come, end cleanly, crash and hang.
func TestOperator_NodesAndWait(t *testing.T) {
	f := startFleet(t, 3, true, "max_staleness 3s")
	k := f.key("acme")
	for _, g := range f.gateways {
		if got := g.get("/", k.Text.Reveal()); got != http.StatusOK {
			t.Fatal(got)
		}
	}
	servers.Eventually(t, "three live nodes without lag", func() bool {
		all := f.nodes()
		for _, n := range all {
			if n["state"] != "live" || n["lag"] != 0.0 || n["version"] == "" || n["applied"].(float64) < 2 || n["heartbeat_at"] == nil {
				return false
			}
		}
		return len(all) == 3
	})
	text, _ := f.must("nodes")
	if !strings.Contains(text, "LAST HEARTBEAT") || strings.Count(text, "live") != 3 {
		t.Errorf("nodes:\n%s", text)
	}
	_, errs := f.must("key", "disable", k.Key.ID, "--wait")
	if !strings.Contains(errs, "all 3 live gateways have applied it, the slowest (") {
		t.Errorf("disable --wait: %s", errs)
	}
	for _, g := range f.gateways {
		if got := g.get("/", k.Text.Reveal()); got != http.StatusUnauthorized {
			t.Errorf("%s: %d after --wait", g.name, got)
		}
	}
	// Nothing to change: --wait still means that everybody has it.
	_, errs = f.must("key", "disable", k.Key.ID, "--wait")
	if !strings.Contains(errs, "1 of 1 were disabled already") || !strings.Contains(errs, "all 3 live gateways") {
		t.Errorf("disable again: %s", errs)
	}
	f.must("key", "enable", k.Key.ID, "--wait")
	// A clean stop is not waited for.
	f.gateways[0].stop()
	if all := f.nodes(); len(all) != 2 {
		t.Errorf("after a clean stop: %v", all)
	}
	// One that hangs is named, with the time by which it refuses.
	hung := f.gateways[1]
	if err := hung.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, errs, code := f.command("key", "revoke", k.Key.ID, "--wait", "--wait-timeout", "500ms")
	if code != 1 || !strings.Contains(errs, "1 of 2 gateways has not applied the change") || !strings.Contains(errs, "refuses by itself from 20") ||
		!strings.Contains(errs, "the change is made") || !strings.Contains(errs, "hint: to go on waiting: caddy-auth nodes --wait") {
		t.Errorf("exit %d: %s", code, errs)
	}
	// It goes on waiting until that one is given up.
	_, errs = f.must("nodes", "--wait")
	if took := time.Since(began); took < 4*time.Second || !strings.Contains(errs, "the one live gateway (") || !strings.Contains(errs, "fell silent and is not waited for any more") {
		t.Errorf("after %s: %s", took, errs)
	}
	for _, n := range f.nodes() {
		if n["state"] == "silent" && n["lag"] == 0.0 {
			t.Errorf("%v", n)
		}
	}
	// And when it goes on, it lets nobody in who was revoked, from its first answer on.
	if err := hung.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if got := hung.get("/", k.Text.Reveal()); got == http.StatusOK {
			t.Fatal("a gateway that hung let a revoked key in")
		}
	}
	servers.Eventually(t, "it is live again", func() bool { return hung.get("/ready", "") == http.StatusOK })
	f.must("key", "create", "--owner", "acme", "--wait")
	// Nobody left.
	f.gateways[1].stop()
	f.gateways[2].stop()
	_, errs = f.must("owner", "disable", "acme", "--wait", "--yes")
	if !strings.Contains(errs, "no live gateway follows this store") {
		t.Errorf("nobody: %s", errs)
	}
	if _, errs, code := f.command("owner", "enable", "acme", "--wait", "--wait-timeout", "soon"); code != 2 || !strings.Contains(errs, "--wait-timeout") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if out, _ := f.must("owner", "show", "acme", "--json"); !strings.Contains(out, `"disabled":true`) {
		t.Error("a command with a bad flag changed something")
	}
}

// TestOperator_StoryOfAKey follows a key from its making to its last refusal,
// as it is told after an incident.
func TestOperator_StoryOfAKey(t *testing.T) {
	f := startFleet(t, 1, true, "")
	g := f.gateways[0]
	key, _ := f.must("key", "create", "--owner", "acme", "--scope", "a")
	key = strings.TrimSpace(key)
	g.get("/", key)
	g.get("/?api_key="+key, "")
	servers.Eventually(t, "the leak is written down", func() bool {
		out, _ := f.must("leaked", "list", "--json")
		return strings.Contains(out, `"leaked_times":1`)
	})
	list, _ := f.must("key", "list", "--json")
	var row struct{ ID string }
	if err := json.Unmarshal([]byte(list), &row); err != nil {
		t.Fatal(err)
	}
	f.must("owner", "disable", "acme", "--yes", "--reason", "strange traffic")
	f.must("owner", "enable", "acme")
	_, errs := f.must("leaked", "revoke", "--wait", "--yes")
	if !strings.Contains(errs, "revoked "+row.ID) || !strings.Contains(errs, "the one live gateway (") {
		t.Errorf("leaked revoke: %s", errs)
	}
	if got := g.get("/", key); got != http.StatusUnauthorized {
		t.Errorf("a revoked key gets %d", got)
	}
	_, errs = f.must("leaked", "revoke")
	if !strings.Contains(errs, "no key that was seen in a URL is left") {
		t.Errorf("again: %s", errs)
	}
	g.stop() // what was collected is written
	out, _ := f.must("audit", row.ID, "--json")
	var actions []string
	for line := range strings.Lines(out) {
		var e struct {
			At, Action, Actor, Target string
			Detail                    map[string]any
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339, e.At); err != nil || e.Actor == "" || e.Detail == nil {
			t.Errorf("%+v", e)
		}
		actions = append(actions, e.Action)
	}
	story := strings.Join(actions, " ")
	for _, want := range []string{"key.create", "key.leaked", "owner.disable", "owner.enable", "key.revoke"} {
		if !strings.Contains(story, want) {
			t.Errorf("the story lacks %s: %s", want, story)
		}
	}
	if !strings.HasPrefix(story, "key.create") || !strings.HasSuffix(story, "key.last_refused") {
		t.Errorf("the story is %s", story)
	}
	show, _ := f.must("key", "show", row.ID)
	if !strings.Contains(show, " revoked\n") || !strings.Contains(show, "last refused") || !strings.Contains(show, "owner.disable by cli:") {
		t.Errorf("show:\n%s", show)
	}
	out, _ = f.must("audit", "--since", "1h", "--action", "owner.")
	if strings.Count(out, "\n") != 2 {
		t.Errorf("audit --action owner.:\n%s", out)
	}
	if out, _ = f.must("audit", "--since", "1h", "--limit", "1", "--json"); !strings.Contains(out, "key.revoke") {
		t.Errorf("audit --limit 1: %s", out)
	}
	if out, errs = f.must("audit", "acme", "--until", "2020-01-01"); out != "" || !strings.Contains(errs, "nothing was found") {
		t.Errorf("audit --until: %s%s", out, errs)
	}
	if _, errs, code := f.command("audit", key); code != 2 || strings.Contains(errs, key) {
		t.Errorf("a key as argument: exit %d: %s", code, errs)
	}
	for _, name := range []string{"gateway-0.log", "auth.db", "auth.db-wal"} {
		if text, _ := os.ReadFile(filepath.Join(f.dir, name)); strings.Contains(string(text), key) {
			t.Errorf("the key is in %s", name)
		}
	}
}

// TestOperator_LeakedRevoke: a gateway that is told to revokes what it sees in
// a URL by itself, everywhere.
func TestOperator_LeakedRevoke(t *testing.T) {
	f := startFleet(t, 2, true, "leaked revoke")
	k := f.key("acme")
	for _, g := range f.gateways {
		if got := g.get("/", k.Text.Reveal()); got != http.StatusOK {
			t.Fatal(got)
		}
	}
	if got := f.gateways[0].get("/x?token="+k.Text.Reveal(), ""); got != http.StatusBadRequest {
		t.Errorf("in a URL: %d", got)
	}
	for _, g := range f.gateways {
		servers.Eventually(t, g.name+" refuses it", func() bool { return g.get("/", k.Text.Reveal()) == http.StatusUnauthorized })
	}
	out, _ := f.must("audit", k.Key.ID)
	if !strings.Contains(out, "key.revoke by gateway") || !strings.Contains(out, "sent in a URL") {
		t.Errorf("audit:\n%s", out)
	}
}

// TestOperator_DoorbellOverRedisFlag: a command without the configuration rings
// where it is told to.
func TestOperator_DoorbellOverRedisFlag(t *testing.T) {
	f := startFleet(t, 1, true, "poll_interval 30s\nmax_staleness 10m")
	k := f.key("acme")
	g := f.gateways[0]
	servers.Eventually(t, "200", func() bool { return g.get("/", k.Text.Reveal()) == http.StatusOK })
	run := func(args ...string) string {
		t.Helper()
		cmd := child(t, "caddy-auth", f.dir, args...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	at := "sqlite:" + f.file.Path()
	began := time.Now()
	run("key", "disable", k.Key.ID, "--store", at, "--redis", f.redis.URL(), "--wait")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the bell was not heard: %s", took)
	}
	f.redis.Kill()
	out := run("key", "enable", k.Key.ID, "--store", at, "--redis", f.redis.URL())
	if !strings.Contains(out, "note: the doorbell was not rung") {
		t.Errorf("%s", out)
	}
	for _, url := range []string{
		"redis://:hunter2@127.0.0.1:1/0", "bogus://u:hunter2@h", "redis://u:hunter2%zz@h:6379/0", "redis://u:hunter2@h:6379/0?x=1", "redis://u:{hunter2@h/0",
		"redis://u:@hunter2@h", "redis://u:{env.X}hunter2@h", "redis:u:hunter2@h",
		"{env.NO_SUCH_VARIABLE}", "nonsense",
	} {
		cmd := child(t, "caddy-auth", f.dir, "key", "disable", k.Key.ID, "--store", at, "--redis", url)
		text, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 2 || strings.Contains(string(text), "hunter2") {
			t.Errorf("%s: exit %d: %s", url, cmd.ProcessState.ExitCode(), text)
		}
	}
	if row, err := f.db.KeyByID(t.Context(), k.Key.ID); err != nil || row.DisabledAt != 0 {
		t.Errorf("a command with a bad flag changed something: %v", err)
	}
	t.Setenv("FLEET_REDIS_PASSWORD", "hunter2")
	run("key", "disable", k.Key.ID, "--store", at, "--redis", "redis://u:{env.FLEET_REDIS_PASSWORD}@127.0.0.1:1/0")
}
