package caddymodule

import (
	"context"
	"errors"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// inForceEvery is how often a login looks whether its configuration is in force.
const inForceEvery = 100 * time.Millisecond

// waitInForce waits until the configuration that this login is of is the one that
// runs: a load may still fail, and one that does must end nobody's session. It
// reports false if ctx ends first.
func (s *loginSource) waitInForce(ctx context.Context) bool {
	for !s.settled && !s.inForce() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(inForceEvery):
		}
	}
	return ctx.Err() == nil
}

func (s *loginSource) inForce() bool {
	app, err := caddy.ActiveContext().AppIfConfigured("auth")
	a, ok := app.(*App)
	if err != nil || !ok || a.signIns == nil {
		return false
	}
	one := a.signIns.byName[s.name]
	return one != nil && one.loginSource == s
}

const (
	// reconfigured is why a session ends whose person another configuration judged.
	reconfigured = "the configuration of its login has changed"
	// judgementKnown is how long it is remembered that a configuration was in force.
	judgementKnown = 10 * 365 * 24 * time.Hour
)

// endReconfigured ends the sessions that another configuration of this login
// judged, when this one is in force for the first time in the life of the store. A
// gateway that still has the other one goes on making some, and may be restarted:
// two must not end each other's. It reports whether that is done.
func (s *loginSource) endReconfigured(ctx context.Context) bool {
	db, err := s.rt.openDB()
	if err != nil {
		return false
	}
	known, hash := "login judged by:"+s.name, []byte(s.judgedBy)
	if seen, err := db.Used(ctx, known, hash); err != nil || seen {
		return err == nil
	}
	n, err := s.rt.endSessions(ctx, "gateway", store.SessionFilter{Login: s.name, NotJudgedBy: s.judgedBy}, reconfigured)
	if n > 0 {
		s.log().Warn("sessions have ended, because another configuration of this login judged who signed in: people sign in anew", zap.Int("sessions", n))
	}
	if err != nil {
		return false
	}
	err = s.rt.useOnce(ctx, known, hash, time.Now().Add(judgementKnown))
	return err == nil || errors.Is(err, auth.ErrConflict)
}
