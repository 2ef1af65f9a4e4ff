package postgres_test

import (
	"fmt"
	"os"
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

func TestInClear(t *testing.T) {
	_ = os.Unsetenv("PGSSLMODE")
	for dsn, want := range map[string]bool{
		"postgres://u@127.0.0.1/db": false, "postgres://u@localhost/db": false, "postgres:///db?host=/run/postgresql": false,
		"postgres://u@db.example/db": true, "postgres://u@db.example/db?sslmode=require": false, "postgres://u@db.example/db?sslmode=verify-full": false,
		"postgres://u@db.example/db?sslmode=disable": true, "postgres://u@127.0.0.1,db.example/db?sslmode=disable": true,
	} {
		if got := backend(t, dsn).InClear(); got != want {
			t.Errorf("%s: %v, want %v", dsn, got, want)
		}
	}
}
