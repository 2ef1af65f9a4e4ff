package servers

import (
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver of Admin
)

// Postgres is a running PostgreSQL server.
type Postgres struct {
	Addr string
	// Admin is the superuser's connection to the database auth.
	Admin *sql.DB

	t     testing.TB
	dir   string
	args  []string
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
}

// postgresUser and its password are of the role that owns the database auth.
const (
	postgresUser     = "gateway"
	postgresPassword = "sesame-of-the-tests"
)

// StartPostgres makes a database cluster in a temporary directory, with more
// settings (name=value), and runs it until the test ends.
func StartPostgres(t testing.TB, settings ...string) *Postgres {
	t.Helper()
	p := newPostgres(t, settings)
	pw := filepath.Join(filepath.Dir(p.dir), "password")
	if err := os.WriteFile(pw, []byte(postgresPassword+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.run("initdb", "-D", p.dir, "-U", "postgres", "--auth-host=scram-sha-256", "--auth-local=trust", "--pwfile="+pw, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
	p.Start()
	p.Do("CREATE ROLE " + postgresUser + " LOGIN PASSWORD '" + postgresPassword + "'")
	p.Do("CREATE DATABASE auth OWNER " + postgresUser)
	_ = p.Admin.Close() // that was to the database postgres
	p.connect("auth")
	return p
}

func newPostgres(t testing.TB, settings []string) *Postgres {
	t.Helper()
	// Not under t.TempDir: the server's user must be able to enter it, and a
	// socket's path is short.
	home, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	p := &Postgres{Addr: SpareAddr(t), t: t, dir: filepath.Join(home, "data")}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if uid, gid, ok := serverUser(t); ok {
		for _, path := range []string{home, p.dir} {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, port, _ := net.SplitHostPort(p.Addr)
	settings = append([]string{
		"listen_addresses=127.0.0.1", "port=" + port, "unix_socket_directories=" + home, "fsync=off", "shared_buffers=32MB",
		"wal_level=replica", "max_wal_senders=4", "log_min_messages=warning", "max_connections=120",
	}, settings...)
	for _, s := range settings {
		p.args = append(p.args, "-c", s)
	}
	return p
}

// serverUser is whom the server runs as where it would refuse to run as us:
// as root it does.
func serverUser(t testing.TB) (uid, gid int, ok bool) {
	t.Helper()
	if os.Getuid() != 0 {
		return 0, 0, false
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("the user postgres, of Debian's package: %v (test/deps.sh installs it)", err)
	}
	uid, _ = strconv.Atoi(u.Uid)
	gid, _ = strconv.Atoi(u.Gid)
	return uid, gid, true
}

// program finds one of PostgreSQL's, which Debian keeps off the path.
func program(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		sort.Strings(found)
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s: %v (test/deps.sh installs it)", name, err)
	}
	return path
}

func (p *Postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(p.t, name), args...)
	cmd.Dir = filepath.Dir(p.dir)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+postgresPassword)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	if uid, gid, ok := serverUser(p.t); ok {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return cmd
}

func (p *Postgres) run(name string, args ...string) {
	p.t.Helper()
	if out, err := p.command(name, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// Start runs the server, again if it was killed, and waits until it answers.
func (p *Postgres) Start() {
	p.t.Helper()
	p.launch()
	p.t.Cleanup(p.Kill)
	if p.Admin == nil {
		p.connect("postgres")
	}
	Eventually(p.t, "PostgreSQL answers", func() bool {
		select {
		case <-p.ended: // children of the one that was killed may still have been there
			p.launch()
		default:
		}
		return p.Admin.Ping() == nil
	})
}

// launch runs the server, which may end at once.
func (p *Postgres) launch() {
	p.t.Helper()
	_ = os.Remove(filepath.Join(p.dir, "postmaster.pid")) // of one that was killed
	log, err := os.OpenFile(filepath.Join(filepath.Dir(p.dir), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = p.command("postgres", append([]string{"-D", p.dir}, p.args...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, ended := p.cmd, make(chan struct{})
	p.ended = ended
	go func() {
		_ = cmd.Wait() // how it ended is of no interest
		close(ended)
	}()
}

func (p *Postgres) connect(database string) {
	p.t.Helper()
	db, err := sql.Open("pgx", fmt.Sprintf("postgres://postgres:%s@%s/%s?sslmode=disable", postgresPassword, p.Addr, database))
	if err != nil {
		p.t.Fatal(err)
	}
	p.Admin = db
	p.t.Cleanup(func() { _ = db.Close() })
}

// DSN is the server's, for the role that owns the database, with more
// parameters (name=value).
func (p *Postgres) DSN(params ...string) string { return p.DSNAt(p.Addr, params...) }

// DSNAt is DSN by way of other addresses, with commas.
func (p *Postgres) DSNAt(addrs string, params ...string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/auth?%s", postgresUser, postgresPassword, addrs, strings.Join(append([]string{"sslmode=disable"}, params...), "&"))
}

// Do runs a statement as the superuser.
func (p *Postgres) Do(query string, args ...any) {
	p.t.Helper()
	if _, err := p.Admin.Exec(query, args...); err != nil {
		p.t.Fatalf("%s: %v", query, err)
	}
}

// Value is what a query of one value returns.
func (p *Postgres) Value(query string, args ...any) string {
	p.t.Helper()
	var out string
	if err := p.Admin.QueryRow(query, args...).Scan(&out); err != nil {
		p.t.Fatalf("%s: %v", query, err)
	}
	return out
}

// Kill ends the server and all its connections at once, as a crash does.
func (p *Postgres) Kill() {
	if p.cmd == nil {
		return
	}
	select {
	case <-p.ended: // its number may be another process's by now
	default:
		p.signalAll(syscall.SIGKILL)
		<-p.ended
	}
	p.cmd = nil
}

// Hang stops the server without closing anything; Resume lets it go on.
func (p *Postgres) Hang()   { p.signalAll(syscall.SIGSTOP) }
func (p *Postgres) Resume() { p.signalAll(syscall.SIGCONT) }

// signalAll reaches the server and its children, which are groups of their
// own.
func (p *Postgres) signalAll(s syscall.Signal) {
	pid := p.cmd.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	_ = syscall.Kill(pid, s)
	for field := range strings.FieldsSeq(string(children)) {
		if child, err := strconv.Atoi(field); err == nil {
			_ = syscall.Kill(child, s)
		}
	}
}

// Standby copies the server and runs the copy, which follows it. name is what
// it calls itself, for synchronous_standby_names.
func (p *Postgres) Standby(name string) *Postgres {
	p.t.Helper()
	host, port, _ := net.SplitHostPort(p.Addr)
	s := newPostgres(p.t, nil)
	s.run("pg_basebackup", "-D", s.dir, "-h", host, "-p", port, "-U", "postgres", "-c", "fast", "-R")
	conf, err := os.OpenFile(filepath.Join(s.dir, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	_, err = fmt.Fprintf(conf, "primary_conninfo = 'host=%s port=%s user=postgres password=%s application_name=%s'\n", host, port, postgresPassword, name)
	if err := errors.Join(err, conf.Close()); err != nil {
		p.t.Fatal(err)
	}
	s.connect("auth")
	s.Start()
	Eventually(p.t, "the standby follows", func() bool { return p.Value("SELECT count(*)::text FROM pg_stat_replication") != "0" })
	return s
}

// Promote makes a standby the primary.
func (p *Postgres) Promote() {
	p.t.Helper()
	p.Do("SELECT pg_promote(true, 30)")
}

// Disconnect makes a standby hear of nothing any more.
func (p *Postgres) Disconnect() {
	p.t.Helper()
	p.Do("ALTER SYSTEM SET primary_conninfo = ''")
	p.Do("SELECT pg_reload_conf()")
	Eventually(p.t, "the standby hears of nothing", func() bool { return p.Value("SELECT count(*)::text FROM pg_stat_wal_receiver") == "0" })
}

// Caught waits until a standby has applied all that its primary has committed.
func (p *Postgres) Caught(primary *Postgres) {
	p.t.Helper()
	want := primary.Value("SELECT pg_current_wal_lsn()::text")
	Eventually(p.t, "the standby has caught up", func() bool {
		return p.Value("SELECT (pg_last_wal_replay_lsn() >= $1::pg_lsn)::text", want) == "true"
	})
}
