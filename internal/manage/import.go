package manage

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// ImportBatch is how many keys one change imports at most.
const ImportBatch = 500

// ImportRow is one key that was made elsewhere: its text, or its SHA-256 in
// hex.
type ImportRow struct {
	KeySpec
	Key    auth.Secret
	SHA256 string
	Hint   string // what people may see of it; for a text the default is its end
}

// Imported is a row that was checked.
type Imported struct {
	spec        KeySpec
	fingerprint auth.Fingerprint
	hint        string
}

// Fingerprint is the key's SHA-256.
func (i *Imported) Fingerprint() auth.Fingerprint { return i.fingerprint }

// Owner and Environment are as they will be.
func (i *Imported) Owner() string       { return i.spec.Owner }
func (i *Imported) Environment() string { return i.spec.Environment }

// CheckImport says what is wrong with a row. Nothing is read or written.
func (p *Pattern) CheckImport(row ImportRow, now time.Time) (*Imported, error) {
	out := &Imported{spec: row.KeySpec, hint: row.Hint}
	switch text := row.Key.Reveal(); {
	case (text == "") == (row.SHA256 == ""):
		return nil, auth.Invalidf("want either key or sha256")
	case text != "":
		if err := p.Check(text); err != nil {
			return nil, err
		}
		out.fingerprint = auth.FingerprintOf(text)
		if out.hint == "" {
			out.hint = p.Name + "_..." + text[len(text)-4:]
		}
	default:
		raw, err := hex.DecodeString(strings.ToLower(row.SHA256))
		if err != nil || len(raw) != len(out.fingerprint) {
			return nil, auth.Invalidf("sha256: want 64 hex digits")
		}
		copy(out.fingerprint[:], raw)
		if out.hint == "" {
			out.hint = p.Name + "_..." // all that is known
		}
	}
	if err := p.checkFields(row); err != nil {
		return nil, err
	}
	return out, errors.Join(p.checkHint(out.hint, row.Key.Reveal()), auth.CheckNewScopes(out.spec.Scopes), out.spec.normalize(now))
}

// ImportCount is what became of rows.
type ImportCount struct {
	Created, Present int
	Owners           []string // new ones
}

// Import adds keys of a form in one change. Those that are there already, with
// the same owner, are left as they are; with another owner: auth.ErrConflict.
func (m *Manager) Import(ctx context.Context, p *Pattern, rows []*Imported) (ImportCount, error) {
	var count ImportCount
	err := m.change(ctx, func(tx *store.Tx) error {
		fps := make([]auth.Fingerprint, 0, len(rows))
		for _, r := range rows {
			fps = append(fps, r.fingerprint)
		}
		owners, err := tx.OwnersOf(ctx, fps)
		if err != nil {
			return err
		}
		var keys []*auth.Key
		ensured := map[string]bool{}
		for _, r := range rows {
			if owner, ok := owners[r.fingerprint]; ok {
				if owner != r.spec.Owner {
					return fmt.Errorf("the key %s is there already, and speaks for %s, not %s: %w", r.hint, owner, r.spec.Owner, auth.ErrConflict)
				}
				count.Present++
				continue
			}
			if !ensured[r.spec.Owner] {
				made, err := tx.EnsureOwner(ctx, r.spec.Owner)
				if err != nil {
					return err
				}
				if ensured[r.spec.Owner] = true; made {
					count.Owners = append(count.Owners, r.spec.Owner)
				}
			}
			k, err := r.key(tx.Now(), p.Name)
			if err != nil {
				return err
			}
			keys = append(keys, k)
			owners[r.fingerprint] = r.spec.Owner // the file may have it twice
		}
		if count.Created = len(keys); len(keys) == 0 {
			return nil
		}
		return m.insertImported(ctx, tx, p, keys)
	})
	if err != nil {
		return ImportCount{}, fmt.Errorf("importing keys: %w", err)
	}
	return count, nil
}

// WithoutForeign leaves out rows whose keys are there and speak for another
// owner.
func (m *Manager) WithoutForeign(ctx context.Context, rows []*Imported) ([]*Imported, error) {
	fps := make([]auth.Fingerprint, 0, len(rows))
	for _, r := range rows {
		fps = append(fps, r.fingerprint)
	}
	owners, err := m.db.OwnersOf(ctx, fps)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r *Imported) bool {
		owner, there := owners[r.fingerprint]
		return there && owner != r.spec.Owner
	}), nil
}

func (m *Manager) insertImported(ctx context.Context, tx *store.Tx, p *Pattern, keys []*auth.Key) error {
	if err := tx.EnsureFormat(ctx, p.Name, p.String()); err != nil {
		return err
	}
	if err := tx.InsertKeys(ctx, keys); err != nil {
		return err
	}
	fps := make([]auth.Fingerprint, 0, len(keys))
	for _, k := range keys {
		fps = append(fps, k.Fingerprint)
	}
	if err := tx.Journal(ctx, store.ChangeKeyImport, fps, auth.Parent{}); err != nil {
		return err
	}
	return tx.Audit(ctx, store.ChangeKeyImport, "format:"+p.Name, map[string]any{"keys": len(keys), "first": keys[0].ID, "last": keys[len(keys)-1].ID})
}

func (i *Imported) key(now int64, format string) (*auth.Key, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an id: %w", err)
	}
	s := i.spec
	if s.Meta == nil {
		s.Meta = map[string]string{}
	}
	return &auth.Key{
		ID: "key_" + id.String(), Fingerprint: i.fingerprint, Hint: i.hint, Owner: s.Owner, Name: s.Name, Environment: s.Environment,
		Scopes: s.Scopes, Networks: s.Networks, Meta: s.Meta, CreatedAt: now, ExpiresAt: s.ExpiresAt, Format: format,
	}, nil
}
