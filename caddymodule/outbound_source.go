package caddymodule

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/grant"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
)

// outbounds keeps sources over reloads: a reload fetches no token.
var outbounds = caddy.NewUsagePool()

// source is a credential in use.
type source struct {
	outbound.Source
	name   string
	tokens *outbound.Tokens // nil: a key
	ask    *grant.Endpoint
	header string         // that carries it
	file   *outbound.File // nil: the secret does not change

	startOnce sync.Once
	stop      func()

	hidden hiddenTexts
	short  bool // the secret was too short to be hidden
}

// hiddenTexts are what logs don't show of one outbound, since an upstream may
// say it again: its secrets, and its tokens while they are good.
type hiddenTexts struct {
	mu      sync.Mutex // guards what follows
	gone    bool
	secrets []auth.Secret // the last ones
	tokens  []grant.Grant
}

const (
	hiddenSecrets = 4
	hiddenTokens  = 64
)

// hideSecret keeps a secret out of every log.
func (h *hiddenTexts) hideSecret(secret auth.Secret) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.secrets = append(slices.DeleteFunc(h.secrets, secret.Equal), secret)
	h.secrets = h.secrets[max(0, len(h.secrets)-hiddenSecrets):]
	h.tell()
}

// hideToken keeps a token out of every log until it has expired.
func (h *hiddenTexts) hideToken(g grant.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens = slices.DeleteFunc(h.tokens, func(old grant.Grant) bool { return time.Now().After(old.Expires) || old.Token.Equal(g.Token) })
	h.tokens = append(h.tokens, g)
	h.tokens = h.tokens[max(0, len(h.tokens)-hiddenTokens):]
	h.tell()
}

// tell tells the masker. h.mu is held.
func (h *hiddenTexts) tell() {
	if h.gone {
		return
	}
	all := slices.Clone(h.secrets)
	for _, g := range h.tokens {
		all = append(all, g.Token)
	}
	masker.SetLiterals(h, all...)
}

// forget ends it.
func (h *hiddenTexts) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = true
	masker.SetLiterals(h)
}

// Destruct implements caddy.Destructor.
func (s *source) Destruct() error {
	// What is under way may still be logged.
	time.AfterFunc(time.Minute, s.hidden.forget)
	if s.stop != nil {
		s.stop()
	}
	if s.tokens != nil {
		s.tokens.Close()
		s.ask.Close()
	}
	return nil
}

// start begins to watch the secret and lets tokens be fetched. Called again it
// does nothing.
func (s *source) start() {
	s.startOnce.Do(func() {
		changed := func() {}
		if s.tokens != nil {
			s.tokens.SetEvents(s.tokenEvents())
			s.tokens.SetShared(newMeeting(s))
			s.tokens.Start()
			changed = s.tokens.SecretChanged
		}
		if s.file != nil {
			s.file.SetEvents(s.fileEvents())
			s.stop = s.file.Watch(changed)
		}
	})
}

// tokenEvents log where the process logs now: a source may outlive the
// configuration that named it.
func (s *source) tokenEvents() outbound.Events {
	name := s.name
	log := func() *zap.Logger { return caddy.Log().Named("auth.outbound") }
	field := zap.String("outbound", name)
	var kept atomic.Int64
	return outbound.Events{
		Got: func(g grant.Grant, from outbound.Origin) {
			s.hidden.hideToken(g)
			metrics.outboundRefreshes.WithLabelValues(name, string(from)).Inc()
			log().Info("has a token", field, zap.String("from", string(from)), zap.Time("expires", g.Expires), zap.Strings("scopes", g.Scopes))
			if !g.Told {
				log().Debug("the token endpoint does not say how long its token lives", field, zap.Duration("assumed", grant.UnknownLifetime))
			}
		},
		Failed: func(f *grant.Failure, left time.Duration) {
			metrics.outboundFailures.WithLabelValues(name, string(f.Cause)).Inc()
			text := "no token; requests to its upstreams get 503 or 502 until there is one"
			if left > 0 {
				text = "no new token; the present one is used as long as it is good"
			}
			log().Error(text, field, zap.Error(hinted(f)), zap.Duration("left", left), zap.Duration("retry_after", f.RetryAfter))
		},
		Refused: func(renewed bool) {
			result := "kept"
			if renewed {
				result = "renewed"
			}
			metrics.outboundRefused.WithLabelValues(name, result).Inc()
			if !renewed && !lately(&kept) { // each request may cause one
				return
			}
			log().Warn("the upstream refuses the token", field, zap.String("result", result))
		},
	}
}

func (s *source) fileEvents() outbound.FileEvents {
	log := func() *zap.Logger { return caddy.Log().Named("auth.outbound") }
	fields := []zap.Field{zap.String("outbound", s.name), zap.String("file", s.file.Path())}
	return outbound.FileEvents{
		Changed: func() {
			s.hidden.hideSecret(s.file.Current())
			log().Info("the secret has changed", fields...)
		},
		Broken: func(err error) {
			log().Error("the secret's file can't be used; the last secret that could is", append(fields, zap.Error(err))...)
		},
		Mended: func() { log().Info("the secret's file holds the present secret again", fields...) },
	}
}

// ownInUse are the sources of configurations that run, for metrics.
var ownInUse sourceCount

type sourceCount struct {
	mu  sync.Mutex
	all []*source // once for each configuration, the newest last
}

func (c *sourceCount) add(s *source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
}

func (c *sourceCount) remove(s *source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.all, s); i >= 0 {
		c.all = slices.Delete(c.all, i, i+1)
	}
}

// byName returns one source of each name.
func (c *sourceCount) byName() map[string]*source {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]*source{}
	for _, s := range c.all {
		out[s.name] = s
	}
	return out
}
