package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// KeyFilter selects keys. Zero fields select everything.
type KeyFilter struct {
	Owner          string
	Environment    string
	Scope          string
	State          auth.KeyState
	CreatedBefore  int64  // unix milliseconds
	ExpiringBefore int64  // unix milliseconds: keys that end before it, and have not ended yet
	UnusedSince    int64  // unix milliseconds: keys that are older, and were not used since
	Hint           string // a part of the hint
	After          string // only keys whose id sorts above this one
	Limit          int    // 0: all
}

// listPage is how many keys are read at a time: nobody holds a snapshot, or a
// connection, for as long as a list of millions takes.
const listPage = 1000

// Keys calls each for the keys that filter selects, by id and so the oldest
// first, until it returns an error. Keys that are made or changed meanwhile may
// or may not be among them.
func (d *DB) Keys(ctx context.Context, f KeyFilter, each func(*auth.Key) error) error {
	now := time.Now()
	found := 0
	for {
		page, err := d.keysPage(ctx, &f, now)
		if err != nil {
			return err
		}
		for _, key := range page {
			if !f.selects(key, now) {
				continue
			}
			if err := each(key); err != nil {
				return err
			}
			if found++; f.Limit > 0 && found >= f.Limit {
				return nil
			}
		}
		if len(page) < listPage {
			return nil
		}
		f.After = page[len(page)-1].ID
	}
}

// where is the condition that the database judges, with its arguments.
func (f *KeyFilter) where(now time.Time) (string, []any) {
	var conditions []string
	var args []any
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	if f.Owner != "" {
		add("k.owner = ?", f.Owner)
	}
	if f.Environment != "" {
		add("k.environment = ?", f.Environment)
	}
	if f.CreatedBefore != 0 {
		add("k.created_at < ?", f.CreatedBefore)
	}
	if f.ExpiringBefore != 0 {
		add("k.expires_at > ? AND k.expires_at < ?", Millis(now), f.ExpiringBefore)
	}
	if f.UnusedSince != 0 {
		add("k.last_used_at < ? AND k.created_at < ?", f.UnusedSince, f.UnusedSince)
	}
	if f.After != "" {
		add("k.id > ?", f.After)
	}
	if len(conditions) == 0 {
		return "", nil
	}
	return "WHERE " + strings.Join(conditions, " AND "), args
}

func (d *DB) keysPage(ctx context.Context, f *KeyFilter, now time.Time) ([]*auth.Key, error) {
	where, args := f.where(now)
	rows, err := d.current().Read.QueryContext(ctx, queryKeys+where+fmt.Sprintf(" ORDER BY k.id LIMIT %d", listPage), args...)
	if err != nil {
		return nil, d.wrap("listing keys", err)
	}
	defer rows.Close()
	var page []*auth.Key
	for rows.Next() {
		var k nullableKey
		if err := rows.Scan(k.dest()...); err != nil {
			return nil, d.wrap("listing keys", err)
		}
		key, err := k.key()
		if err != nil {
			return nil, d.wrap("listing keys", err)
		}
		page = append(page, key)
	}
	return page, d.wrap("listing keys", rows.Err())
}

// selects judges what the database did not. Who asks for keys that end soon or
// are not used means keys that work.
func (f *KeyFilter) selects(k *auth.Key, now time.Time) bool {
	state := f.State
	if state == "" && (f.ExpiringBefore != 0 || f.UnusedSince != 0) {
		state = auth.KeyActive
	}
	if state != "" && k.State(now) != state {
		return false
	}
	if f.Hint != "" && !strings.Contains(k.Hint, f.Hint) {
		return false
	}
	return f.Scope == "" || slices.Contains(k.Scopes, f.Scope)
}
