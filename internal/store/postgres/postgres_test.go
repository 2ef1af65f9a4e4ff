package postgres_test

import (
	"database/sql"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
	"github.com/caddy-auth/caddy-auth/internal/store/storetest"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

var schemas atomic.Int64

// schema makes an empty schema of its own and returns its DSN parameters.
func schema(t *testing.T, p *servers.Postgres) string {
	t.Helper()
	name := fmt.Sprintf("s%d", schemas.Add(1))
	p.Do("CREATE SCHEMA " + name + " AUTHORIZATION gateway")
	return "search_path=" + name
}

func backend(t *testing.T, dsn string) *postgres.Backend {
	t.Helper()
	b, err := postgres.New(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func conforms(t *testing.T, p *servers.Postgres, params ...string) {
	t.Helper()
	type place struct{ test, name string }
	places := map[place]string{}
	storetest.Run(t, func(t *testing.T, name string) store.Backend {
		at := place{t.Name(), name}
		if places[at] == "" {
			places[at] = schema(t, p)
		}
		return backend(t, p.DSN(append(params, places[at])...))
	})
}

func TestConformance(t *testing.T) { conforms(t, servers.StartPostgres(t)) }

// TestConformance_OtherDefaults: what a role has set for itself changes
// nothing, and neither does the database's locale.
func TestConformance_OtherDefaults(t *testing.T) {
	p := servers.StartPostgres(t)
	for _, s := range []string{"default_transaction_isolation = 'repeatable read'", "synchronous_commit = off", "default_transaction_deferrable = on", "TimeZone = 'Asia/Kathmandu'", "bytea_output = escape"} {
		p.Do("ALTER ROLE gateway SET " + s)
	}
	conforms(t, p)
	p.Do("ALTER ROLE gateway SET default_transaction_isolation = serializable")
	conforms(t, p)
}

func TestNew_SaysNothingOfThePassword(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:s3cret@host:port/db", "postgres://u:s3cret@host/db?sslmode=maybe", "host=x password=s3cret port=-1", "postgres://u:s3c%zzret@host/db", "s3cret",
		"postgres://u:s3cret@h/db?target_session_attrs=any", "postgres://u:s3cret@h/db?target_session_attrs=standby",
	} {
		_, err := postgres.New(dsn)
		if err == nil {
			t.Errorf("%s: taken", dsn)
			continue
		}
		if strings.Contains(err.Error()+auth.Hint(err), "s3c") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	b := backend(t, "postgres://u:s3cret@a:1,b:2/db?search_path=x")
	if got := b.Describe(); got != "postgres://u@a:1,b:2/db?search_path=x" {
		t.Errorf("described as %s", got)
	}
	if s := fmt.Sprintf("%v %+v", b.Identity(), b.Identity()); strings.Contains(s, "s3cret") {
		t.Error(s)
	}
}

func TestExposed(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	for dsn, want := range map[string]string{
		"postgres://u@127.0.0.1/db": "", "postgres://u@localhost/db": "", "postgres:///db?host=/run/postgresql": "", "postgres://u@db.example/db?sslmode=verify-full": "",
		"postgres://u@db.example/db": "without TLS", "postgres://u@db.example/db?sslmode=disable": "without TLS", "postgres://u@127.0.0.1,db.example/db?sslmode=disable": "without TLS",
		"postgres://u@db.example/db?sslmode=require": "who answers", "postgres://u@db.example/db?sslmode=verify-ca": "who answers",
	} {
		if got := backend(t, dsn).Exposed(); got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%s: %q, want %q", dsn, got, want)
		}
	}
}

// TestTimeouts: nobody waits for long, whatever the role has set.
func TestTimeouts(t *testing.T) {
	p := servers.StartPostgres(t)
	for _, c := range []struct{ role, param, want string }{
		{"0", "", "10s"}, {"60000", "", "10s"}, {"3000", "", "3s"}, {"0", "lock_timeout=2000", "2s"},
	} {
		p.Do("ALTER ROLE gateway SET lock_timeout = " + c.role)
		b := backend(t, p.DSN(c.param))
		conns, err := b.Connect(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := conns.Write.QueryRow("SHOW lock_timeout").Scan(&got); err != nil || got != c.want {
			t.Errorf("%+v: %s, %v", c, got, err)
		}
		for _, db := range []*sql.DB{conns.Read, conns.Write, conns.Note, conns.Fresh} {
			_ = db.Close()
		}
	}
}
