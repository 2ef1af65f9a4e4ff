package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

const (
	// endEvery is how often a gateway looks for tokens of sessions that have
	// ended, endAtOnce how many it revokes then.
	endEvery  = 10 * time.Second
	endAtOnce = 50
	// mostFailures is after how many a round gives up: each may take a timeout.
	mostFailures = 5
	// finishTokens is how long a gateway that stops waits for tokens that it is
	// just refreshing, or could not write yet.
	finishTokens = 15 * time.Second
)

// loginSource is a login in use. It survives reloads that don't change it.
type loginSource struct {
	name      string
	judgedBy  string // see auth.Session
	authority string
	rt        *runtime
	client    *login.Client
	delegate  *login.Delegate
	keeper    login.Keeper
	keys      pooledKeys
	http      *fetch.Client
	file      *outbound.File // nil: the secret does not change
	hidden    hiddenTexts

	startOnce sync.Once
	stopWatch func()
	stop      context.CancelFunc
	done      sync.WaitGroup
	poke      chan struct{}
	settled   bool   // the sessions of another configuration were ended; endTokens only
	ended     string // the last session whose tokens were looked at; endTokens only
}

func newLoginSource(name string, c *LoginConfig, claims verifier.ClaimRules, rt *runtime, keys pooledKeys) (*loginSource, error) {
	s := &loginSource{name: name, rt: rt, keys: keys, poke: make(chan struct{}, 1)}
	var err error
	if s.judgedBy, s.authority, err = c.judgement(claims).Digests(); err != nil {
		return nil, err
	}
	check := grant.CheckClientSecret(c.Auth, grant.KeyConfig{})
	var secret grant.Secret
	if c.ClientSecretFile != "" {
		if s.file, err = outbound.NewFile(c.ClientSecretFile, check); err != nil {
			return nil, fmt.Errorf("client_secret can't be used: %w", err)
		}
		secret = s.file
	} else {
		if err := check(c.ClientSecret); err != nil {
			return nil, fmt.Errorf("client_secret can't be used: %w", err)
		}
		secret = grant.Fixed(auth.NewSecret(c.ClientSecret))
	}
	endpoint, err := grant.NewEndpoint(grant.Config{ClientID: c.ClientID, Auth: c.Auth, Secret: secret, Scopes: c.Scopes, Timeout: time.Duration(c.Timeout)})
	if err != nil {
		return nil, fmt.Errorf("client_secret can't be used: %w", err)
	}
	s.hidden.hideSecret(secret.Current())
	s.http = fetch.New(keysTimeout, keysConns)
	s.client = login.New(login.Config{
		Name: name, JudgedBy: s.judgedBy, Authority: s.authority, Issuer: c.Issuer, ClientID: c.ClientID, Scopes: c.Scopes, Algorithms: c.Algorithms, Params: c.Params,
		Identify: identify(name, claims), Attempts: rt.attempts, Once: marked(rt, "login:"+name),
	}, login.NewProvider(c.Issuer, s.http), endpoint, keys, func() login.Sealer {
		if e := rt.envelope.Load(); e != nil {
			return e
		}
		return nil
	})
	s.keeper = sessionKeeper{rt}
	s.delegate = login.NewDelegate(s.client, s.keeper, s.delegateEvents())
	return s, nil
}

// start begins to watch the secret, to fetch keys and to revoke what has ended.
// Called again it does nothing.
func (s *loginSource) start() {
	s.startOnce.Do(func() {
		s.keys.Start()
		if s.file != nil {
			s.file.SetEvents(outbound.FileEvents{
				Changed: func() { s.hidden.hideSecret(s.file.Current()); s.log().Info("the secret has changed") },
				Broken: func(err error) {
					s.log().Error("the secret's file can't be used; the last secret that could is", zap.Error(err))
				},
			})
			s.stopWatch = s.file.Watch(func() {})
		}
		ctx, cancel := context.WithCancel(context.Background())
		s.stop = cancel
		s.rt.enders.Store(s, nil)
		s.done.Go(func() { s.endTokens(ctx) })
	})
}

// Destruct implements caddy.Destructor.
func (s *loginSource) Destruct() error {
	time.AfterFunc(time.Minute, s.hidden.forget) // what is under way may still be logged
	if s.stopWatch != nil {
		s.stopWatch()
	}
	if s.stop != nil {
		s.rt.enders.Delete(s)
		s.stop()
		s.done.Wait()
	}
	if !caddy.Exiting() {
		s.delegate.Retire()
		retired.Store(s, nil)
		time.AfterFunc(time.Minute, func() { retired.Delete(s); s.http.Close(); s.client.Close() })
		return nil
	}
	// What a refresh under way brings must be kept, also of those that a reload
	// has just replaced.
	until := time.Now().Add(finishTokens)
	s.delegate.Close(time.Until(until))
	retired.Range(func(other, _ any) bool { other.(*loginSource).delegate.Close(time.Until(until)); return true })
	s.http.Close()
	s.client.Close()
	return nil
}

// retired are the sources that a reload replaced a short while ago.
var retired sync.Map

// log logs where the process logs now: a source may outlive the configuration
// that named it.
func (s *loginSource) log() *zap.Logger {
	return caddy.Log().Named("auth.login").With(zap.String("login", s.name))
}

func (s *loginSource) delegateEvents() login.DelegateEvents {
	return login.DelegateEvents{
		Working: func() func() { s.rt.enter(); return s.rt.leave },
		Holds: func(token auth.Secret, until time.Time) {
			s.hidden.hideToken(grant.Grant{Token: token, Expires: until})
		},
		Refreshed: func(id string) {
			metrics.sessionRefreshes.WithLabelValues(s.name, "refreshed").Inc()
			s.log().Debug("refreshed the tokens of a session", zap.String("session", id))
		},
		Failed: func(id string, err error) {
			metrics.sessionRefreshes.WithLabelValues(s.name, "failed").Inc()
			s.log().Warn("the tokens of a session can't be refreshed now; the session goes on", zap.String("session", id), zap.Error(hinted(err)))
		},
		Over: func(id string, err error) {
			metrics.sessionRefreshes.WithLabelValues(s.name, "over").Inc()
			s.log().Info("a session has no tokens any more and has ended", zap.String("session", id), zap.Error(err))
		},
	}
}

// revokeSoon makes the tokens of sessions that have just ended be revoked.
func (s *loginSource) revokeSoon() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// endTokens revokes, at the provider, the tokens of sessions that have ended, on
// whichever gateway or command line, until ctx ends.
func (s *loginSource) endTokens(ctx context.Context) {
	tick := time.NewTicker(endEvery)
	defer tick.Stop()
	s.rt.awaitOpen(ctx)
	for s.waitInForce(ctx) {
		if !s.settled {
			s.settled = s.endReconfigured(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
		case <-tick.C:
		}
		if err := s.endTokensOnce(ctx); err != nil && ctx.Err() == nil {
			s.log().Warn("the tokens of sessions that have ended can't be revoked at the provider now; it is tried again for a day", zap.Error(hinted(err)))
		}
	}
}

func (s *loginSource) endTokensOnce(ctx context.Context) error {
	db, err := s.rt.openDB()
	if err != nil {
		return nil // nobody can look
	}
	var failed error
	failures := 0
	for more := true; more; {
		found, err := db.SessionsToRevoke(ctx, s.authority, s.ended, time.Now().UnixMilli(), endAtOnce)
		if err != nil {
			return err
		}
		if more = len(found) == endAtOnce; !more {
			defer func() { s.ended = "" }() // the next round begins anew
		}
		for _, one := range found {
			s.ended = one.ID
			if err := s.endTokensOf(ctx, one.ID); login.Passes(err) {
				failed = err
				if failures++; failures >= mostFailures { // the next round goes on behind it
					return failed
				}
			}
		}
	}
	return failed
}

// endTokensOf revokes the tokens of one session.
func (s *loginSource) endTokensOf(ctx context.Context, id string) error {
	told, err := login.RevokeEnded(ctx, s.client, s.keeper, id)
	s.delegate.Forget(id)
	result := "revoked"
	switch {
	case errors.Is(err, login.ErrCantRevoke), errors.Is(err, login.ErrOthers):
		result = "unsupported"
	case errors.Is(err, secret.ErrWrongKey): // another gateway's master key may open them
		s.log().Warn("the tokens of a session that has ended can't be opened", zap.String("session", id), zap.Error(err))
		return nil
	case err != nil:
		result = "failed"
		if !login.Passes(err) {
			s.log().Warn("the provider does not revoke the tokens of a session that has ended; they are forgotten here", zap.String("session", id), zap.Error(hinted(err)))
		}
	case !told:
		return nil
	}
	metrics.sessionRevocations.WithLabelValues(s.name, result).Inc()
	return err
}

// sessionKeeper is the store as login.Keeper.
type sessionKeeper struct{ rt *runtime }

// open returns what it takes to read and write tokens.
func (k sessionKeeper) open() (*store.DB, *secret.Ring, error) {
	db, err := k.rt.openDB()
	if err != nil {
		return nil, nil, err
	}
	ring := k.rt.ring.Load()
	if ring == nil {
		return nil, nil, fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable)
	}
	return db, ring, nil
}

// Tokens implements login.Keeper.
func (k sessionKeeper) Tokens(ctx context.Context, id string) (login.Kept, error) {
	db, ring, err := k.open()
	if err != nil {
		return login.Kept{}, err
	}
	t, err := db.SessionTokens(ctx, ring, id)
	return login.Kept{Plain: t.Plain, Version: t.Version, Ended: t.Ended, Authority: t.Authority}, err
}

// Lease implements login.Keeper.
func (k sessionKeeper) Lease(ctx context.Context, id string, version int64, by string, ttl time.Duration) (ours, after bool, err error) {
	db, err := k.rt.openDB()
	if err != nil {
		return false, false, err
	}
	return db.LeaseSession(ctx, id, version, by, ttl)
}

// Release implements login.Keeper.
func (k sessionKeeper) Release(ctx context.Context, id, by string) error {
	db, err := k.rt.openDB()
	if err != nil {
		return err
	}
	return db.ReleaseSession(ctx, id, by)
}

// Put implements login.Keeper.
func (k sessionKeeper) Put(ctx context.Context, id string, version int64, plain []byte) (bool, error) {
	db, ring, err := k.open()
	if err != nil {
		return false, err
	}
	return db.PutSessionTokens(ctx, ring, id, version, plain)
}

// End implements login.Keeper.
func (k sessionKeeper) End(ctx context.Context, id, reason string) error {
	_, err := k.rt.endSessions(ctx, "gateway", store.SessionFilter{IDs: []string{id}}, reason)
	return err
}

// endSessions ends sessions. When it returns nil, this gateway has applied it.
func (rt *runtime) endSessions(ctx context.Context, actor string, f store.SessionFilter, reason string) (int, error) {
	db, err := rt.openDB()
	if err != nil {
		return 0, err
	}
	m := manage.New(db, actor, "", nil)
	m.SetBell(rt)
	n, err := m.EndSessions(ctx, f, reason)
	if err != nil || n == 0 {
		return n, err
	}
	metrics.sessionsEnded.Add(float64(n))
	return n, rt.follower.LookSoon(ctx)
}

// useOnce marks something as used until a time; auth.ErrConflict: it was.
func (rt *runtime) useOnce(ctx context.Context, whose string, hash []byte, until time.Time) error {
	db, err := rt.openDB()
	if err != nil {
		return err
	}
	i := &store.Issue{JTI: hash, AssertionEnds: until.UnixMilli()}
	i.Token.ClientID = whose
	return db.UseAssertion(ctx, i)
}

// touches remembers which sessions' use was noted lately.
type touches struct {
	mu   sync.Mutex
	last map[auth.Fingerprint]time.Time
	busy int
}

// mostTouching is how many notes may be under way.
const mostTouching = 8

// begin reports whether the use of a session is to be noted now: step after the
// last time.
func (t *touches) begin(fp auth.Fingerprint, now time.Time, step time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.last[fp]) < step || t.busy >= mostTouching {
		return false
	}
	if t.last == nil || len(t.last) > 10_000 {
		t.last = map[auth.Fingerprint]time.Time{}
	}
	t.last[fp] = now
	t.busy++
	return true
}

func (t *touches) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
}

// touchTimeout bounds the noting of a session's use.
const touchTimeout = 5 * time.Second

// touch notes that a session is used, if that was not noted for a tenth of its
// idle time. It does not wait.
func (s *signIn) touch(fp auth.Fingerprint, id *auth.Identity, now time.Time) {
	idle := time.Duration(s.Idle)
	step := min(idle/10, 5*time.Minute)
	end := time.UnixMilli(id.NotAfter)
	longest := time.Unix(int64(id.IssuedAt), 0).Add(time.Duration(s.Lifetime))
	if end.Sub(now) > idle-step || !end.Before(longest) || !s.rt.touched.begin(fp, now, step) {
		return
	}
	s.rt.enter()
	go func() {
		defer s.rt.leave()
		defer s.rt.touched.end()
		ctx, cancel := context.WithTimeout(context.Background(), touchTimeout)
		defer cancel()
		db, err := s.rt.openDB()
		if err == nil {
			err = db.TouchSession(ctx, fp, idle)
		}
		if err != nil {
			s.log().Warn("the use of a session could not be noted", zap.Error(err))
			return
		}
		s.rt.verifier.SessionAnew(ctx, fp, time.Now())
	}()
}
