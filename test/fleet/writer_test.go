package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// said is one line of the writer: what it is about to do, then, once the change
// was acknowledged, the same with Done.
type said struct {
	Op   string
	ID   string // of the key, empty for create until it is done
	Text string `json:",omitempty"`
	Done bool
	Seq  int64
	Row  []byte
}

// writerMain changes keys of the store in its first argument until it is
// killed, and says what it does.
func writerMain() {
	if err := write(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func write(ctx context.Context, path string) error {
	backend := sqlite.New(path)
	key, err := backend.MasterKey()
	if err != nil {
		return err
	}
	raw, err := secret.ParseMasterKey(key)
	if err != nil {
		return err
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, backend, store.Existing)
	if err != nil {
		return err
	}
	m := manage.New(db, "writer", "ca", func(ctx context.Context) (*secret.Minter, error) { return db.Minter(ctx, ring) })
	var ids []string
	for {
		s := said{Op: "create"}
		if len(ids) > 4 {
			s.Op = []string{"create", "revoke", "disable", "enable", "revoke"}[rand.IntN(5)]
		}
		if s.Op != "create" {
			s.ID = ids[rand.IntN(len(ids))]
		}
		if err := say(&s); err != nil {
			return err
		}
		if err := s.do(ctx, m); err != nil {
			return err
		}
		if s.Op == "create" {
			ids = append(ids, s.ID)
		}
		if p, ok := m.Wrote(); ok {
			s.Seq, s.Row = p.Seq, p.Row[:]
		}
		s.Done = true
		if err := say(&s); err != nil {
			return err
		}
	}
}

func (s *said) do(ctx context.Context, m *manage.Manager) error {
	var err error
	switch s.Op {
	case "create":
		var made manage.Made
		if made, err = m.Create(ctx, manage.KeySpec{Owner: "acme"}); err == nil {
			s.ID, s.Text = made.Key.ID, made.Text.Reveal()
		}
	case "revoke":
		_, err = m.Revoke(ctx, []string{s.ID}, "")
	default:
		_, err = m.SetDisabled(ctx, []string{s.ID}, s.Op == "disable", "")
	}
	if err != nil && isRevoked(err) { // nothing was to be done
		err = nil
	}
	return err
}

func isRevoked(err error) bool { return bytes.Contains([]byte(err.Error()), []byte("is revoked")) }

func say(s *said) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(line, '\n')) // whole lines only
	return err
}

func (s *said) point() auth.Point {
	p := auth.Point{Seq: s.Seq}
	copy(p.Row[:], s.Row)
	return p
}
