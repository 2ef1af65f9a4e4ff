package fleet

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/ledger"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

const (
	outageRate = 500
	outagePoll = 200 * time.Millisecond
	outageDoc  = "../../docs/reliability.md"
)

// outageTimes are how long a fault lasts, and max_staleness, which is more.
func outageTimes() (held, staleness time.Duration) {
	if soak() || os.Getenv("CADDY_AUTH_RELIABILITY") != "" {
		return 5 * time.Second, 10 * time.Second
	}
	return time.Second, 4 * time.Second
}

// outages is one gateway in front of a Redis and a PostgreSQL that are broken
// in turn, and a second one that is not, whose only part is to fill Redis.
type outages struct {
	*fleet
	pg         *servers.Postgres
	redisProxy *servers.Proxy
	storeProxy *servers.Proxy

	made   setup
	cached []*ledger.Credential
	held   time.Duration // how long a fault lasts
	stale  time.Duration // max_staleness
	rows   []string
}

// outage is one cell of the matrix.
type outage struct {
	name       string
	what       string // is away: redis, store or both
	begin, end func()
	early      bool          // nobody can change anything while it lasts
	stays      bool          // the store is there: nobody is turned away
	held       time.Duration // other than the usual
}

func TestOutage_Matrix(t *testing.T) {
	pg := servers.StartPostgres(t)
	redis := servers.StartRedis(t, "--maxmemory", "64mb", "--enable-protected-configs", "yes")
	o := &outages{pg: pg, redisProxy: servers.StartProxy(t, redis.Addr), storeProxy: servers.StartProxy(t, pg.Addr)}
	o.start(t, setup{
		n: 2, redis: redis, dsn: pg.DSN(), redisLine: "redis redis://" + o.redisProxy.Addr + "/0",
		storeLine: fmt.Sprintf("store postgres %q", pg.DSNAt(o.storeProxy.Addr)),
	})
	whole := o.made
	whole.redisLine, whole.storeLine = "", ""
	o.gateways[1].configure(whole)
	o.gateways[1].reload()
	o.gateways[1].ready()
	o.runAll(t, o.cells())
	rows := append(o.rows, withSentinels(t, pg)...)
	report(t, append(rows, withCluster(t, pg)...))
}

// withSentinels kills the master: the sentinels choose its replica.
func withSentinels(t *testing.T, pg *servers.Postgres) []string {
	s := servers.StartSentinels(t)
	o := &outages{pg: pg}
	o.start(t, setup{n: 2, dsn: pg.DSN(), redisLine: fmt.Sprintf("redis {\naddresses %s\nsentinel_master %s\n}", strings.Join(s.Addrs, " "), servers.SentinelMaster)})
	was := s.Now()
	o.runAll(t, []outage{{name: "failover by sentinels", what: "redis", stays: true, held: 3 * time.Second, begin: s.Master.Kill, end: func() {}}})
	if len(o.rows) == 0 { // -run left it out
		return nil
	}
	servers.Eventually(t, "the sentinels have chosen another master", func() bool { return s.Now() != was })
	if len(s.Replica.Dump()) == 0 {
		t.Error("nothing was written to the new master")
	}
	return o.rows
}

// withCluster moves slots from node to node, then loses one.
func withCluster(t *testing.T, pg *servers.Postgres) []string {
	c := servers.StartCluster(t)
	o := &outages{pg: pg}
	o.start(t, setup{n: 2, dsn: pg.DSN(), redisLine: "redis {\naddresses " + strings.Join(c.Addrs(), " ") + "\ncluster\n}"})
	o.runAll(t, []outage{
		{name: "cluster, slots moving", what: "redis", stays: true, begin: func() { c.Reshard(0, 1, 2000); c.Reshard(1, 2, 3000) }, end: func() {}},
		{name: "cluster, one of three masters lost", what: "redis", stays: true, begin: c.Nodes[2].Kill, end: c.Nodes[2].Start},
	})
	if len(o.rows) == 0 {
		return nil
	}
	for i, n := range c.Nodes[:2] {
		if len(n.Dump()) == 0 {
			t.Errorf("nothing was written to node %d", i)
		}
	}
	return o.rows
}

func (o *outages) runAll(t *testing.T, cells []outage) {
	for _, c := range cells {
		t.Run(c.what+" "+c.name, func(t *testing.T) { o.run(t, c) })
	}
}

// start runs the gateways and makes the keys that are asked for all the time.
func (o *outages) start(t *testing.T, s setup) {
	o.held, o.stale = outageTimes()
	s.global = fmt.Sprintf("poll_interval %s\nmax_staleness %s", outagePoll, o.stale)
	o.made = s
	o.fleet = startSetup(t, s)
	for range 5 {
		o.cached = append(o.cached, &ledger.Credential{Class: ledger.Cached, Key: o.key("acme").Text.Reveal()})
	}
}

// redis and store build cells.
func (o *outages) cells() []outage {
	viaProxy := func(p *servers.Proxy, f servers.Fault) (begin, end func()) {
		return func() { p.Set(f) }, func() { p.Set(servers.Pass) }
	}
	proxied := func(name, what string, f servers.Fault, ps ...*servers.Proxy) outage {
		c := outage{name: name, what: what, stays: what == "redis", begin: func() {}, end: func() {}}
		for _, p := range ps {
			begin, end := viaProxy(p, f)
			before, after := c.begin, c.end
			c.begin = func() { before(); begin() }
			c.end = func() { after(); end() }
		}
		return c
	}
	redis := func(name string, begin, end func()) outage {
		return outage{name: name, what: "redis", stays: true, begin: begin, end: end}
	}
	store := func(name string, begin, end func()) outage {
		return outage{name: name, what: "store", begin: begin, end: end, early: true}
	}
	r, pg := o.fleet.redis, o.pg
	pass := func() { o.redisProxy.Set(servers.Pass) }
	var cells []outage
	for _, f := range []struct {
		name  string
		fault servers.Fault
	}{
		{"refused", servers.Refuse},
		{"hanging", servers.Blackhole},
		{"slow (200 ms)", servers.Slow},
		{"dripping (a byte each 20 ms)", servers.Drip},
		{"reset in the middle of an answer", servers.Cut},
		{"bytes changed", servers.Corrupt},
		{"answers that are none", servers.Rubbish},
	} {
		cells = append(cells, proxied(f.name, "redis", f.fault, o.redisProxy), proxied(f.name, "store", f.fault, o.storeProxy))
	}
	cells = append(cells,
		redis("half-open connections", o.redisProxy.HalfOpen, func() {}),
		redis("LOADING", func() { o.redisProxy.SetSay("-LOADING Redis is loading the dataset in memory\r\n") }, pass),
		redis("MOVED", func() { o.redisProxy.SetSay("-MOVED 3999 127.0.0.1:6381\r\n") }, pass),
		redis("READONLY", func() { r.Do("REPLICAOF", "127.0.0.1", "1") }, func() { r.Do("REPLICAOF", "NO", "ONE") }),
		redis("OOM", func() { r.Do("CONFIG", "SET", "maxmemory", "1") }, func() { r.Do("CONFIG", "SET", "maxmemory", "64mb") }),
		redis("auth error", func() {
			r.Do("ACL", "SETUSER", "default", "resetpass", ">other", "on")
			r.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		},
			func() { r.Do("ACL", "SETUSER", "default", "nopass") }),
		redis("records of another type", func() {
			for name := range r.Dump() {
				r.Do("EVAL", servers.ToList, 1, name)
			}
		}, func() { r.Do("FLUSHALL") }),
		redis("corrupt records", func() {
			for name, v := range r.Dump() {
				r.Do("SET", name, v[:len(v)-1]+string(v[len(v)-1]^1))
			}
		}, func() { r.Do("FLUSHALL") }),
		redis("disk full", func() { r.Do("CONFIG", "SET", "dir", "/proc"); r.Do("CONFIG", "SET", "save", "1 1"); r.Do("BGSAVE") },
			func() { r.Do("CONFIG", "SET", "save", ""); r.Do("CONFIG", "SET", "dir", o.dir) }),
		redis("process stopped", r.Hang, r.Resume),
		redis("killed and started again", func() { r.Kill(); r.Start() }, func() {}),
		outage{name: "half-open connections", what: "store", begin: o.storeProxy.HalfOpen, end: func() {}},
		store("auth error", func() { pg.Do("ALTER ROLE gateway PASSWORD 'other'"); o.storeProxy.Drop() },
			func() { pg.Do("ALTER ROLE gateway PASSWORD 'sesame-of-the-tests'") }),
		store("READONLY", func() { pg.Do("ALTER DATABASE auth SET default_transaction_read_only = on"); o.storeProxy.Drop() },
			func() { pg.Do("ALTER DATABASE auth RESET default_transaction_read_only"); o.storeProxy.Drop() }),
		store("disk full", func() { pg.Do(fullTriggers("CREATE")) }, func() { pg.Do(fullTriggers("DROP")) }),
		store("no connection left", func() { pg.Do("ALTER ROLE gateway CONNECTION LIMIT 1"); o.storeProxy.Drop() },
			func() { pg.Do("ALTER ROLE gateway CONNECTION LIMIT -1") }),
		store("tables locked", o.lockTables(), func() {
			pg.Do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'locker'")
		}),
		store("process stopped", pg.Hang, pg.Resume),
		store("killed and started again", func() { pg.Kill(); pg.Start() }, func() {}),
		proxied("refused", "both", servers.Refuse, o.redisProxy, o.storeProxy),
		proxied("hanging", "both", servers.Blackhole, o.redisProxy, o.storeProxy),
	)
	long := proxied("hanging, longer than max_staleness", "store", servers.Blackhole, o.storeProxy)
	long.held = o.stale + 2*time.Second
	return append(cells, long)
}

// lockTables takes a lock that nothing gets past, as a careless migration does.
func (o *outages) lockTables() func() {
	return func() {
		conn, err := o.pg.Admin.Conn(context.Background())
		if err != nil {
			o.t.Error(err)
			return
		}
		for _, q := range []string{"SET application_name = 'locker'", "BEGIN", "LOCK TABLE keys, journal, nodes IN ACCESS EXCLUSIVE MODE"} {
			if _, err := conn.ExecContext(context.Background(), q); err != nil {
				o.t.Error(err)
			}
		}
	}
}

// fullTriggers makes every write fail as it does on a full disk: reading goes on.
func fullTriggers(do string) string {
	if do == "DROP" {
		return "DROP FUNCTION full_disk CASCADE"
	}
	q := "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;"
	for _, table := range []string{"keys", "journal", "audit", "nodes", "owners"} {
		q += fmt.Sprintf("CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON %s EXECUTE FUNCTION full_disk();", table)
	}
	return q
}

// traffic is what is sent while a cell runs: of a hundred requests 4 are of
// keys nobody asked for, 4 of keys that another gateway asked for, 4 of the
// victim's, 4 forged, 4 to a public path, and the others of cached keys.
func (o *outages) traffic(t *testing.T) (load *ledger.Load, victim *ledger.Credential, made manage.Made) {
	made = o.key("victim")
	victim = &ledger.Credential{Class: ledger.Victim, Key: made.Text.Reveal()}
	const fresh = 120
	cold, shared := make([]*ledger.Credential, fresh), make([]*ledger.Credential, fresh)
	for i := range fresh {
		cold[i] = &ledger.Credential{Class: ledger.Cold, Key: o.key("acme").Text.Reveal()}
		shared[i] = &ledger.Credential{Class: ledger.Shared, Key: o.key("acme").Text.Reveal()}
		if s := o.gateways[1].get("/", shared[i].Key); s != 200 {
			t.Fatalf("filling Redis: %d", s)
		}
	}
	forged := &ledger.Credential{Class: ledger.Forged, Key: made.Text.Reveal()[:len(made.Text.Reveal())-4] + "0000"}
	public := &ledger.Credential{Class: ledger.Public}
	// next takes each of a list once, then cached ones.
	next := func(list []*ledger.Credential, n int) *ledger.Credential {
		if i := n / 25; i < len(list) {
			return list[i]
		}
		return o.cached[n%len(o.cached)]
	}
	load = &ledger.Load{Rate: outageRate, Client: o.client, URLs: func() []string { return []string{"http://" + o.gateways[0].addr} }, Pick: func(n int) *ledger.Credential {
		switch n % 25 {
		case 3:
			return next(cold, n)
		case 8:
			return next(shared, n)
		case 13:
			return victim
		case 18:
			return forged
		case 23:
			return public
		}
		return o.cached[n%len(o.cached)]
	}}
	return load, victim, made
}

// settled waits until everything is as it was before the cell.
func (o *outages) settled(t *testing.T, load *ledger.Load) {
	t.Helper()
	servers.Eventually(t, "all good keys pass again", func() bool {
		good, bad := load.Recent(time.Now().Add(-700 * time.Millisecond))
		return good > 200 && bad == 0
	})
}

// run is one cell. On a busy machine Redis may be late, which is left alone for a
// second then, most of a cell: such a one is run again.
func (o *outages) run(t *testing.T, c outage) {
	for range 2 {
		if o.try(t, c, true) {
			return
		}
	}
	o.try(t, c, false)
}

// try is one cell, and whether it counts.
func (o *outages) try(t *testing.T, c outage, again bool) bool {
	held := max(o.held, c.held)
	load, victim, made := o.traffic(t)
	stop := load.Start()
	o.settled(t, load)
	calm := ledger.SumOf(load.Take(), ledger.Cached).P99
	if c.early {
		o.revoke(t, victim, made)
	}
	began := time.Now()
	c.begin()
	if !c.early {
		o.revoke(t, victim, made)
	}
	bound := o.stale
	if c.stays {
		bound = outagePoll
	}
	const slack = 500 * time.Millisecond // of a machine of two cores that also runs the load
	victim.StopsAt(time.Now().Add(bound + slack))
	wait(held - time.Since(began))
	c.end()
	healed := time.Now()
	o.settled(t, load)
	stop()
	entries := load.Take()
	for i, w := range ledger.Wrong(entries) {
		if i == 10 {
			t.Error("and so on")
			break
		}
		t.Error(w)
	}
	if n := load.Again.Load(); n > 0 {
		t.Errorf("%d requests got no answer at first", n)
	}
	if again && c.sharedLate(ledger.SumOf(entries, ledger.Shared)) {
		t.Log("Redis was late: once more")
		return false
	}
	o.judge(t, c, entries, healed, calm)
	return true
}

// sharedLate reports whether too many keys that were in Redis got 503 while the
// store was away.
func (c outage) sharedLate(shared ledger.Sum) bool {
	return c.what == "store" && c.held == 0 && shared.Unavailable > shared.Requests/5
}

func (o *outages) revoke(t *testing.T, victim *ledger.Credential, made manage.Made) {
	t.Helper()
	victim.Ending()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := o.ops.Revoke(ctx, []string{made.Key.ID}, "test"); err != nil {
		t.Fatal(err)
	}
}

func wait(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// judge holds what design 4.7 says of the cell against what was answered.
func (o *outages) judge(t *testing.T, c outage, entries []ledger.Entry, healed time.Time, calm time.Duration) {
	cached, cold, all := ledger.SumOf(entries, ledger.Cached), ledger.SumOf(entries, ledger.Cold), ledger.SumOf(entries)
	shared := ledger.SumOf(entries, ledger.Shared)
	recovered := ledger.Recovered(entries, healed)
	if c.stays && cached.Unavailable+cold.Unavailable+shared.Unavailable > 0 {
		t.Errorf("the store was there, but %d cached, %d shared and %d cold keys got 503", cached.Unavailable, shared.Unavailable, cold.Unavailable)
	}
	if c.held == 0 && cached.Unavailable > 0 {
		t.Errorf("%d cached keys got 503 within max_staleness", cached.Unavailable)
	}
	if c.held > o.stale && cached.Unavailable == 0 {
		t.Error("cached keys were trusted for longer than max_staleness")
	}
	// A Redis that is late once is left alone for a second, on a busy machine
	// too: then the store is asked.
	if c.sharedLate(shared) {
		t.Errorf("%d of %d keys that were in Redis got 503", shared.Unavailable, shared.Requests)
	}
	if cached.P99 > max(250*time.Millisecond, min(10*calm, time.Second)) {
		t.Errorf("p99 of cached keys is %s, without a fault %s", cached.P99, calm)
	}
	if most := 6 * time.Second; all.Max > most { // what a lookup may take at most, and slack
		t.Errorf("a request took %s", all.Max)
	}
	if recovered > 8*time.Second {
		t.Errorf("recovered after %s", recovered)
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }
	percent := func(s ledger.Sum) string {
		if s.Requests == 0 {
			return "–"
		}
		return fmt.Sprintf("%d%%", (100*s.Unavailable+s.Requests-1)/s.Requests)
	}
	row := fmt.Sprintf("| %s | %s | %d | %s | %s | %s | %s | %s | %s | %s |", c.what, c.name, all.Requests, percent(cached), percent(shared), percent(cold),
		ms(cached.P99), ms(all.P99), ms(all.Max), recovered.Round(10*time.Millisecond))
	t.Log(row)
	o.rows = append(o.rows, row)
}

const (
	tableBegin = "<!-- written by TestOutage_Matrix: make reliability -->\n"
	tableEnd   = "<!-- end -->\n"
	tableHead  = "| away | how | requests | cached 503 | in Redis 503 | unknown 503 | p99 cached, ms | p99 all, ms | slowest, ms | recovered after |\n|---|---|---|---|---|---|---|---|---|---|\n"
)

// report writes the table where that is asked for, and else holds that the
// document has a row for each cell.
func report(t *testing.T, rows []string) {
	t.Helper()
	held, staleness := outageTimes()
	text, err := os.ReadFile(outageDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", outageDoc)
	}
	if os.Getenv("CADDY_AUTH_RELIABILITY") != "" && !t.Failed() {
		rows = slices.Sorted(slices.Values(rows))
		note := fmt.Sprintf("\n%d requests a second, each fault for %s, max_staleness %s, poll_interval %s, on %s.\n\n", outageRate, held, staleness, outagePoll, time.Now().Format(time.DateOnly))
		if err := os.WriteFile(outageDoc, []byte(before+tableBegin+note+tableHead+strings.Join(rows, "\n")+"\n\n"+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, row := range rows {
		cells := strings.Split(row, "|")
		if key := "|" + cells[1] + "|" + cells[2] + "|"; !strings.Contains(table, key) {
			t.Errorf("%s lacks the row %s: make reliability", outageDoc, key)
		}
	}
}
