package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
)

type behalfKey struct{}

// OnBehalfOf returns a context whose changes say in the audit log for whom the actor
// claims to act. It is a claim, kept apart from the actor.
func OnBehalfOf(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, behalfKey{}, who)
}

// behalfMember is where a row's detail has that claim.
const behalfMember = "on_behalf_of"

// SplitBehalf takes the claim out of an audit row's detail. who is empty if there
// is none.
func SplitBehalf(detail string) (who, rest string) {
	if !strings.Contains(detail, behalfMember) {
		return "", detail
	}
	var all map[string]json.RawMessage
	if json.Unmarshal([]byte(detail), &all) != nil || json.Unmarshal(all[behalfMember], &who) != nil {
		return "", detail
	}
	delete(all, behalfMember)
	text, err := json.Marshal(all)
	if err != nil {
		return "", detail
	}
	return who, string(text)
}

// Audit writes who did what to which target. detail never holds a secret.
func (tx *Tx) Audit(ctx context.Context, action, target string, detail map[string]any) error {
	if who, _ := ctx.Value(behalfKey{}).(string); who != "" {
		detail = maps.Clone(detail)
		if detail == nil {
			detail = map[string]any{}
		}
		detail[behalfMember] = who
	}
	text, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	tx.audited = true
	return tx.exec(ctx, "writing the audit log",
		`INSERT INTO audit (at, actor, action, target, detail) VALUES ($1, $2, $3, $4, $5)`,
		tx.now, tx.actor, action, target, string(text))
}

// Note writes an audit row that belongs to no change, such as a leak.
func (d *DB) Note(ctx context.Context, actor, action, target string, detail map[string]any) error {
	return d.Change(ctx, actor, func(tx *Tx) error {
		tx.journaled = true // nothing a cache could have got wrong
		return tx.Audit(ctx, action, target, detail)
	})
}

// AuditEntry is one row of the audit log. Detail is a JSON object.
type AuditEntry struct {
	ID                            int64
	At                            int64
	Actor, Action, Target, Detail string
}

const queryAudit = `SELECT id, at, actor, action, target, detail FROM audit `

// AuditOf returns the audit rows about target, oldest first.
func (d *DB) AuditOf(ctx context.Context, target string) ([]AuditEntry, error) {
	var out []AuditEntry
	err := d.audit(ctx, func(e AuditEntry) error { out = append(out, e); return nil }, queryAudit+`WHERE target = $1 ORDER BY id`, target)
	return out, err
}

// AuditFilter selects audit rows. Zero fields select everything.
type AuditFilter struct {
	Since, Until int64 // unix milliseconds; until is not included
	Actor        string
	Action       string // all that begins so
	Target       string
	Limit        int // only the newest
}

const queryAuditFilter = `WHERE at >= $1 AND (at < $2 OR $2 = 0) AND ($3 = '' OR actor = $3)
	AND ($4 = '' OR substr(action, 1, length($4)) = $4) AND ($5 = '' OR target = $5)`

// FindAudit calls each for the audit rows that filter selects, oldest first,
// until it returns an error.
func (d *DB) FindAudit(ctx context.Context, f AuditFilter, each func(AuditEntry) error) error {
	limit := int64(f.Limit)
	if limit <= 0 {
		limit = math.MaxInt64
	}
	return d.audit(ctx, each, `SELECT id, at, actor, action, target, detail FROM (`+queryAudit+queryAuditFilter+` ORDER BY id DESC LIMIT $6) newest ORDER BY id`,
		f.Since, f.Until, f.Actor, f.Action, f.Target, limit)
}

// AuditAfter calls each for the audit rows after id, oldest first.
func (d *DB) AuditAfter(ctx context.Context, id int64, each func(AuditEntry) error) error {
	return d.audit(ctx, each, queryAudit+`WHERE id > $1 ORDER BY id`, id)
}

// LastAudit returns the newest audit row, or the zero one.
func (d *DB) LastAudit(ctx context.Context) (AuditEntry, error) {
	return d.AuditAt(ctx, -1)
}

// AuditAt returns the audit row with an id, the newest for -1, or the zero one.
func (d *DB) AuditAt(ctx context.Context, id int64) (AuditEntry, error) {
	var e AuditEntry
	err := d.current().Read.QueryRowContext(ctx, queryAudit+`WHERE id = CASE WHEN CAST($1 AS BIGINT) < 0 THEN (SELECT MAX(id) FROM audit) ELSE CAST($1 AS BIGINT) END`, id).
		Scan(&e.ID, &e.At, &e.Actor, &e.Action, &e.Target, &e.Detail)
	if errors.Is(err, sql.ErrNoRows) {
		return AuditEntry{}, nil
	}
	return e, d.wrap("reading the audit log", err)
}

func (d *DB) audit(ctx context.Context, each func(AuditEntry) error, query string, args ...any) error {
	rows, err := d.current().Read.QueryContext(ctx, query, args...)
	if err != nil {
		return d.wrap("reading the audit log", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e AuditEntry
		if err := rows.Scan(&e.ID, &e.At, &e.Actor, &e.Action, &e.Target, &e.Detail); err != nil {
			return d.wrap("reading the audit log", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	return d.wrap("reading the audit log", rows.Err())
}
