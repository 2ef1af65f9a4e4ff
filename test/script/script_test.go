// Package script runs the command line as people do: each *.txtar file is one
// story.
package script

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/caddy-auth/caddy-auth/caddymodule"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"caddy-auth": func() {
			caddymodule.Brand()
			caddycmd.Main()
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: ".",
		Setup: func(e *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer l.Close()
			e.Setenv("ADDR", l.Addr().String())
			admin, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer admin.Close()
			e.Setenv("ADMIN", admin.Addr().String())
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_DATA_HOME", e.WorkDir+"/data")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/config")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"field": field,
			"lines": lines,
			"mode":  mode,
			"login": login,
		},
	})
}

// field NAME VAR reads a member of the JSON object that the last command
// printed into an environment variable.
func field(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: field NAME VAR")
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &m); err != nil {
		ts.Fatalf("the output is no JSON object: %v", err)
	}
	v, ok := m[args[0]].(string)
	if !ok {
		ts.Fatalf("%s is %v", args[0], m[args[0]])
	}
	ts.Setenv(args[1], v)
}

// lines N checks how many lines the last command printed.
func lines(ts *testscript.TestScript, neg bool, args []string) {
	got := strings.Count(ts.ReadFile("stdout"), "\n")
	if want := args[0]; (strings.Repeat("x", got) == strings.Repeat("x", atoi(ts, want))) == neg {
		ts.Fatalf("%d lines, want %s", got, want)
	}
}

// mode MODE FILE checks a file's permissions.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s", args[1], got)
	}
}

// login FILE SUB puts the session of somebody who signed in by corp into a store:
// what a browser and a provider do.
func login(ts *testscript.TestScript, _ bool, args []string) {
	backend := sqlite.New(ts.MkAbs(args[0]))
	master, err := backend.MasterKey()
	ts.Check(err)
	raw, err := secret.ParseMasterKey(master)
	ts.Check(err)
	ring, err := secret.NewRing("store secrets", raw)
	ts.Check(err)
	db, err := store.Open(context.Background(), backend, store.Existing)
	ts.Check(err)
	defer db.Close()
	id := uuid.Must(uuid.NewV7()).String()
	ts.Check(db.InsertSession(context.Background(), ring, &auth.Session{
		ID: "ses_" + id, Fingerprint: auth.SessionFingerprint("corp", id), Login: "corp", Subject: "corp:" + args[1], Sub: args[1], SID: "s-" + args[1],
		Environment: "live", Scopes: "openid", JudgedBy: "another configuration", Meta: auth.EncodeMeta([]string{"email"}, map[string]string{"email": args[1] + "@example.com"}),
	}, time.Now(), []byte(`{"v":1,"access":"x"}`), time.Hour, 2*time.Hour))
}

func atoi(ts *testscript.TestScript, s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			ts.Fatalf("%q is no number", s)
		}
		n = 10*n + int(c-'0')
	}
	return n
}
