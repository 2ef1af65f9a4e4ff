// Package servers starts what the gateway talks to, for tests: real servers
// from Debian's packages, on spare ports, in temporary directories.
package servers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// SpareAddr returns a loopback address nobody listens on. Its port is below
// those that the system gives to clients, so that none of them takes it before
// the server does.
func SpareAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			continue // somebody has it
		}
		addr := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	t.Fatal("no spare port")
	return ""
}

// Redis is a running redis-server.
type Redis struct {
	Addr string
	// Admin is a client with all rights, patient where the gateway's is not.
	Admin *redis.Client

	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
}

// StartRedis runs redis-server with more arguments until the test ends. An
// argument {dir} in them is its temporary directory.
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	return StartRedisWith(t, &redis.Options{}, args...)
}

// StartRedisWith also says how the test's own client connects; its address is
// set here.
func StartRedisWith(t testing.TB, admin *redis.Options, args ...string) *Redis {
	t.Helper()
	r := &Redis{t: t, Addr: SpareAddr(t), dir: t.TempDir()}
	_, port, _ := net.SplitHostPort(r.Addr)
	r.args = []string{"--bind", "127.0.0.1", "--dir", r.dir, "--save", "", "--appendonly", "no", "--loglevel", "warning", "--logfile", filepath.Join(r.dir, "redis.log")}
	if admin.TLSConfig == nil {
		r.args = append(r.args, "--port", port)
	} else {
		r.args = append(r.args, "--port", "0", "--tls-port", port)
	}
	r.args = append(r.args, args...)
	admin.Addr = r.Addr
	r.Admin = redis.NewClient(admin)
	t.Cleanup(func() { _ = r.Admin.Close() })
	r.Start()
	t.Cleanup(r.Kill)
	return r
}

// ToList is a script that makes a value one of another type, in one step:
// somebody may be writing it.
const ToList = "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 'x')"

// Pid is the server's process.
func (r *Redis) Pid() int { return r.cmd.Process.Pid }

// URL is the server's, without user and password.
func (r *Redis) URL() string { return "redis://" + r.Addr + "/0" }

// Start runs the server, again if it was killed, and waits until it answers.
func (r *Redis) Start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", r.args...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatalf("redis-server: %v (test/deps.sh installs it)", err)
	}
	Eventually(r.t, "redis-server answers", func() bool { return r.Admin.Ping(context.Background()).Err() == nil })
}

// Kill ends the server at once, as a crash does.
func (r *Redis) Kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGCONT) // it may hang
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.cmd = nil
}

// Hang stops the server without closing anything; Resume lets it go on.
func (r *Redis) Hang()   { r.signal(syscall.SIGSTOP) }
func (r *Redis) Resume() { r.signal(syscall.SIGCONT) }

func (r *Redis) signal(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// Do runs a command with all rights.
func (r *Redis) Do(args ...any) any {
	r.t.Helper()
	out, err := r.Admin.Do(context.Background(), args...).Result()
	if err != nil {
		r.t.Fatalf("%v: %v", args, err)
	}
	return out
}

// Dump returns every name and value, and all else that a reader of the
// server's memory would see.
func (r *Redis) Dump() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	ctx := context.Background()
	for _, name := range r.Admin.Keys(ctx, "*").Val() {
		out[name] = r.Admin.Get(ctx, name).Val()
	}
	return out
}

// Calls returns how often a command was called since the statistics were reset.
func (r *Redis) Calls(command string) string {
	r.t.Helper()
	info := r.Admin.InfoMap(context.Background(), "commandstats").Item("Commandstats", "cmdstat_"+command)
	calls, _, _ := strings.Cut(strings.TrimPrefix(info, "calls="), ",")
	return calls
}

// Eventually polls until ok or a deadline.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
