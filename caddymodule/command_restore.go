package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// restore is one run of store restore.
type restore struct {
	s       *session
	t       *target
	at      *sqlite.Backend
	present *store.DB // nil: missing or unreadable
	staged  *sqlite.Backend
	db      *store.DB // the staged copy; nil when it is closed
	loss    *manage.Loss
	why     string // why the loss is not known

	keyFile string // a saved master key to put in place, or ""
}

func storeRestore(ctx context.Context, s *session) (err error) {
	if err := s.wantArgs(1, 1, "the backup's file"); err != nil {
		return err
	}
	if _, err := s.waitTimeout(); err != nil {
		return err
	}
	r := &restore{s: s}
	if r.t, r.at, err = s.sqliteTarget(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if r.staged, err = r.at.Stage(ctx, s.args[0]); err != nil {
		return fmt.Errorf("reading the backup %s: %w", s.args[0], err)
	}
	if r.db, err = store.Open(ctx, r.staged, store.Migrate); err != nil {
		return fmt.Errorf("opening the backup: %w", err)
	}
	if err := r.db.Usable(ctx); err != nil {
		return fmt.Errorf("the backup is of a store that can't be used: %w", err)
	}
	if err := r.checkMasterKey(ctx); err != nil {
		return err
	}
	if err := r.compare(ctx); err != nil {
		return err
	}
	if err := r.tell(ctx); err != nil {
		return err
	}
	if dry, _ := s.cmd.Flags().GetBool("dry-run"); dry {
		s.note("nothing was changed")
		return nil
	}
	if repeat, _ := s.cmd.Flags().GetBool("repeat-revocations"); repeat && r.loss == nil {
		return usagef("--repeat-revocations: what to repeat is not known; restore without it and revoke again by hand")
	}
	if err := s.confirmNamed("put this backup in place of " + r.at.Path()); err != nil {
		return err
	}
	return r.swap(ctx)
}

// swap exchanges the content of the database. Nobody changes it meanwhile, and
// nothing changed in it that was not told.
func (r *restore) swap(ctx context.Context) (err error) {
	stamp := time.Now().UTC().Format("20060102T150405Z")
	var repeated int
	var aside string
	if r.present != nil {
		aside, err = r.at.Replace(ctx, r.staged, stamp, func() error {
			if err := r.present.Usable(ctx); err != nil { // what was moved must not come back to life beside its copy
				return err
			}
			loss, err := manage.Compare(ctx, r.present, r.db)
			if err != nil {
				return err
			}
			if !loss.Same(*r.loss) {
				return auth.WithHint(fmt.Errorf("%s changed since what is lost was listed: %w", r.at.Path(), auth.ErrConflict), "nothing was changed; run it again")
			}
			if repeated, err = r.prepare(ctx); err != nil {
				return err
			}
			return r.placeKey()
		})
	} else {
		aside, repeated, err = r.putInPlace(ctx, stamp)
	}
	if aside != "" {
		r.s.note("what was there is kept as %s: remove it when you are sure", aside)
		if err := sqlite.Adopt(aside, r.at.Path()); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	r.s.note("restored; running gateways notice within their poll interval")
	if r.s.json {
		if err := printJSON(r.s.out, map[string]any{"restored": r.s.args[0], "moved_aside": aside, "stopped_again": repeated}); err != nil {
			return err
		}
	}
	return r.settle(ctx)
}

// settle tells the gateways, and waits until they have started over if that
// was asked for.
func (r *restore) settle(ctx context.Context) error {
	db, err := store.Open(ctx, r.at, store.Existing)
	if err != nil {
		return fmt.Errorf("opening the restored store: %w", err)
	}
	defer db.Close()
	o := r.s.manage(r.t, db)
	if err := (cliBell{r.t, r.s.cmd, o}).Ring(ctx); err != nil {
		r.s.note("note: the doorbell was not rung: %s", manage.Mask(err.Error()))
	}
	return r.s.settle(ctx, o)
}

// putInPlace restores where there is no store, or only a damaged one.
func (r *restore) putInPlace(ctx context.Context, stamp string) (aside string, repeated int, err error) {
	if repeated, err = r.prepare(ctx); err != nil {
		return "", 0, err
	}
	err = r.db.Close()
	if r.db = nil; err != nil {
		return "", 0, err
	}
	if err := sqlite.Adopt(r.staged.Path(), r.at.Path()); err != nil {
		return "", 0, err
	}
	if err := r.compare(ctx); err != nil { // a store may have come meanwhile
		return "", 0, err
	}
	if r.present != nil {
		return "", 0, auth.WithHint(fmt.Errorf("%s was made meanwhile: %w", r.at.Path(), auth.ErrConflict), "nothing was changed; run it again")
	}
	if err := r.placeKey(); err != nil {
		return "", 0, err
	}
	aside, err = r.at.PutInPlace(r.staged, stamp)
	return aside, repeated, err
}

// placeKey puts a master key that was saved beside the backup in place.
func (r *restore) placeKey() error {
	if r.keyFile == "" {
		return nil
	}
	if err := sqlite.CopyMasterKey(r.keyFile, r.at.MasterKeyPath()); err != nil {
		return err
	}
	return sqlite.Adopt(r.at.MasterKeyPath(), r.at.Path())
}

func (r *restore) close() error {
	var errs []error
	for _, db := range []*store.DB{r.db, r.present} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if r.staged != nil {
		errs = append(errs, r.staged.Discard())
	}
	return errors.Join(errs...)
}

// checkMasterKey makes sure that the backup's secrets can be opened, with the
// key that was saved beside it if there is none here yet.
func (r *restore) checkMasterKey(ctx context.Context) error {
	keys := r.t.masters
	if len(keys) == 0 {
		key, err := r.at.MasterKey()
		if errors.Is(err, auth.ErrNotInitialized) {
			saved := sqlite.New(r.s.args[0])
			if key, err = saved.MasterKey(); err == nil {
				r.s.note("no master key here yet: the one in %s is used", saved.MasterKeyPath())
				r.keyFile = saved.MasterKeyPath()
			}
		}
		if err != nil {
			return err
		}
		keys = []auth.Secret{key}
	}
	ring, err := masterRing(keys, r.at, false)
	if err != nil {
		return err
	}
	_, err = r.db.Minter(ctx, ring)
	return err
}

// compare finds out what is lost. A present store that is missing or damaged
// can't say it.
func (r *restore) compare(ctx context.Context) error {
	present, err := store.Open(ctx, r.at, store.Existing)
	if errors.Is(err, auth.ErrNotInitialized) {
		r.why = "there is no store here now"
		return nil
	}
	if errors.Is(err, auth.ErrCorrupt) {
		r.why = fmt.Sprintf("the store here is damaged (%v)", err)
		return nil
	}
	if err != nil { // busy, forbidden, too new: it can be read another time
		return fmt.Errorf("looking at what is there: %w", err)
	}
	if r.db == nil {
		r.present = present
		return nil
	}
	loss, err := manage.Compare(ctx, present, r.db)
	if err != nil {
		_ = present.Close() // the first error is the one to report
	}
	switch {
	case errors.Is(err, auth.ErrConflict):
		return auth.WithHint(err, "restore it elsewhere with --store sqlite:PATH, or move the store here away first")
	case errors.Is(err, auth.ErrCorrupt):
		r.why = fmt.Sprintf("the store here is damaged (%v)", err)
		return nil
	case err != nil:
		return err
	}
	r.present, r.loss = present, &loss
	return nil
}

// tell prints what is lost and what must be stopped again.
func (r *restore) tell(ctx context.Context) error {
	if r.loss == nil {
		last, err := r.db.LastAudit(ctx)
		if err != nil {
			return err
		}
		r.s.note("%s: what is lost is not known. Revoke again what was revoked after %s.", r.why, moment(last.At))
		return nil
	}
	if r.loss.Count == 0 {
		r.s.note("nothing changed since the backup")
	} else {
		r.s.note("%d changes since the backup are lost:", r.loss.Count)
	}
	for i, c := range r.loss.Changes {
		if r.s.json {
			if err := printJSON(r.s.out, map[string]any{"lost": c.Action, "target": c.Target, "at": moment(c.At), "actor": c.Actor}); err != nil {
				return err
			}
		} else if i < shownChanges {
			r.s.note("  %s  %s  %s  by %s", moment(c.At), c.Action, c.Target, c.Actor)
		}
	}
	if more := r.loss.Count - shownChanges; more > 0 && !r.s.json {
		r.s.note("  and %d more", more)
	}
	for _, k := range r.loss.Revived {
		if r.s.json {
			if err := printJSON(r.s.out, map[string]any{"works_again": k.Key.ID, "owner": k.Key.Owner, "was": k.Why}); err != nil {
				return err
			}
		}
		if k.Why == "ending" {
			r.s.note("works longer: %s of %s, which would have ended %s", k.Key.ID, k.Key.Owner, moment(k.Key.NotAfter()))
			continue
		}
		r.s.note("works again: %s of %s, which was %s", k.Key.ID, k.Key.Owner, k.Why)
	}
	for _, o := range r.loss.Owners {
		if r.s.json {
			if err := printJSON(r.s.out, map[string]any{"works_again": "owner:" + o.Name, "was": "disabled"}); err != nil {
				return err
			}
		}
		r.s.note("works again: the owner %s, which was disabled", o.Name)
	}
	for _, c := range r.loss.CutOffs {
		v := viewCutOff(c)
		if r.s.json {
			if err := printJSON(r.s.out, map[string]any{"works_again": "tokens", "issuer": v.Issuer, "jti": v.JTI, "subject": v.Subject, "was": "revoked"}); err != nil {
				return err
			}
		}
		r.s.note("works again: tokens of %s that were revoked, %s", v.Issuer, printable(v.JTI+v.Subject))
	}
	if err := r.showTokens(); err != nil {
		return err
	}
	if repeat, _ := r.s.cmd.Flags().GetBool("repeat-revocations"); !repeat && len(r.loss.Revived)+len(r.loss.Owners)+len(r.loss.CutOffs)+r.loss.TokenCount() > 0 {
		r.s.note("to keep them out, use --repeat-revocations, or afterwards run:")
		r.commands()
	}
	return nil
}

func (r *restore) commands() {
	ids := map[string][]string{}
	for _, k := range r.loss.Revived {
		if k.Why == "ending" {
			r.s.note("  caddy-auth key edit %s --expires %s", k.Key.ID, moment(k.Key.NotAfter()))
			continue
		}
		action := "revoke"
		if k.Why == "disabled" {
			action = "disable"
		}
		ids[action] = append(ids[action], k.Key.ID)
	}
	for _, action := range []string{"revoke", "disable"} {
		if len(ids[action]) > 0 {
			r.s.note("  caddy-auth key %s %s", action, strings.Join(ids[action], " "))
		}
	}
	for _, o := range r.loss.Owners {
		r.s.note("  caddy-auth owner disable %s", o.Name)
	}
	for _, c := range r.loss.CutOffs {
		flag, name := "--subject", c.Subject
		if c.JTI != "" {
			flag, name = "--jti", c.JTI
		}
		r.s.note("  caddy-auth token revoke --issuer %s %s '%s'", c.Issuer, flag, strings.ReplaceAll(printable(name), "'", `'\''`))
	}
	r.tokenCommands()
}

// prepare begins a new epoch in the staged copy and stops again what is to be
// stopped, before anybody uses it.
func (r *restore) prepare(ctx context.Context) (repeated int, err error) {
	if err := r.db.Renew(ctx); err != nil {
		return 0, err
	}
	// Which ended since nobody can tell, and refresh tokens of then are used up.
	sessions, err := manage.New(r.db, actor(), r.t.prefix, nil).EndSessions(ctx, store.SessionFilter{}, "restored from a backup")
	if err != nil {
		return 0, err
	}
	if sessions > 0 {
		r.s.note("ended %d sessions: people sign in again", sessions)
	}
	repeat, _ := r.s.cmd.Flags().GetBool("repeat-revocations")
	if repeat && r.loss != nil {
		keys, owners, err := manage.New(r.db, actor(), r.t.prefix, nil).Repeat(ctx, *r.loss)
		if err != nil {
			return 0, err
		}
		repeated = keys + owners
		r.s.note("stopped again: %d keys, %d owners, tokens of %d revocations", keys, owners, len(r.loss.CutOffs))
		if n := r.loss.TokenCount(); n > 0 {
			r.s.note("stopped again: %d clients, secrets, tokens and assertion keys", n)
		}
	}
	lost := -1
	if r.loss != nil {
		lost = r.loss.Count
	}
	return repeated, r.db.Note(ctx, actor(), "store.restore", "store", map[string]any{"changes_lost": lost, "stopped_again": repeated})
}
