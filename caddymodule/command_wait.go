package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
)

// ringTimeout is how long a command tries to ring: connecting to a server far
// away takes longer than a gateway would wait.
const ringTimeout = 2 * time.Second

func waitFlags(c *cobra.Command) {
	c.Flags().Bool("wait", false, "wait until every live gateway has applied the change")
	c.Flags().String("wait-timeout", "30s", "how long to wait before it is an error")
	behalfFlag(c)
}

// behalfFlag is for commands that write to the audit log.
func behalfFlag(c *cobra.Command) {
	c.Flags().String("on-behalf-of", "", "for whom, or why: a person, a ticket; the audit log keeps it beside who ran the command")
}

// waitTimeout is how long to wait for gateways; 0: not at all.
func (s *session) waitTimeout() (time.Duration, error) {
	if s.cmd.Flags().Lookup("wait") == nil {
		return 0, nil
	}
	text, _ := s.cmd.Flags().GetString("wait-timeout")
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, usagef("--wait-timeout %q: want a duration such as 30s", text)
	}
	if wait, _ := s.cmd.Flags().GetBool("wait"); !wait {
		return 0, nil
	}
	return d, nil
}

// settle ends a changing command: it says if gateways could not be told, and
// waits for them if that was asked for.
func (s *session) settle(ctx context.Context, o *opened) error {
	if err := o.Unheard(); err != nil {
		s.note("note: the doorbell was not rung (%s); gateways see the change at their next poll_interval", manage.Mask(err.Error()))
	}
	timeout, err := s.waitTimeout()
	if err != nil || timeout == 0 {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ack, err := o.Wait(waiting)
	if errors.Is(err, manage.ErrUndone) {
		return auth.WithHint(err, "look at it with show, and run the command again")
	}
	var missing *manage.MissingError
	if errors.As(err, &missing) {
		return auth.WithHint(fmt.Errorf("the change is made, but after %s %w", timeout, err),
			"to go on waiting: caddy-auth nodes --wait")
	}
	if err != nil {
		return fmt.Errorf("the change is made, but waiting for the gateways failed: %w", err)
	}
	for _, name := range ack.GivenUp {
		s.note("%s fell silent and is not waited for any more: it refuses by itself until it has looked", name)
	}
	_, changed := o.Wrote()
	switch {
	case ack.Nodes == 0:
		s.note("no live gateway follows this store, so there is nobody to wait for")
		return nil
	case !changed && !s.waitsOnly:
		s.note("nothing was changed now; %s what was changed before", plural(ack.Nodes, "the one live gateway knows", "all %d live gateways know"))
		return nil
	}
	if ack.Nodes == 1 {
		s.note("the one live gateway (%s) has applied it after %s", ack.Slowest, ack.Took.Round(time.Millisecond))
		return nil
	}
	s.note("all %d live gateways have applied it, the slowest (%s) after %s", ack.Nodes, ack.Slowest, ack.Took.Round(time.Millisecond))
	return nil
}

// cliBell rings for a command, on the Redis that the gateways listen to.
type cliBell struct {
	t      *target
	cmd    *cobra.Command
	opened *opened
}

// Ring implements manage.Bell. Without Redis there is nothing to ring.
func (b cliBell) Ring(ctx context.Context) error {
	channel, err := b.channel(ctx)
	if err != nil {
		return err
	}
	return b.ring(ctx, channel)
}

// channel is where the gateways listen; empty without Redis.
func (b cliBell) channel(ctx context.Context) (string, error) {
	conf, err := b.t.redis(b.cmd)
	if err != nil || conf == nil {
		return "", err
	}
	ring, _, err := ringOf(ctx, b.opened.db, b.t.masters, b.t.backend)
	if err != nil {
		return "", err
	}
	e, err := b.opened.db.Envelope(ctx, ring)
	if err != nil {
		return "", err
	}
	return conf.prefix() + e.Channel(bellKind), nil
}

func (b cliBell) ring(ctx context.Context, channel string) error {
	conf, err := b.t.redis(b.cmd)
	if err != nil || conf == nil {
		return err
	}
	opts, _, err := conf.options()
	if err != nil {
		return err
	}
	opts.Timeout = max(opts.Timeout, ringTimeout)
	client := redisx.New(opts)
	defer client.Close()
	return client.Publish(ctx, channel)
}

// redis is the Redis that the flag or the configuration names; nil: none.
func (t *target) redis(cmd *cobra.Command) (*RedisConfig, error) {
	var conf *RedisConfig
	if t.app != nil {
		conf = t.app.Redis
	}
	named, _ := cmd.Flags().GetString("redis")
	if named == "" {
		return conf, nil
	}
	if hasPassword(named) {
		return nil, auth.WithHint(usagef("--redis: the password stands in the command line, where others can read it"), "put it into the environment: --redis {env.X}, or redis://user:{env.X}@host")
	}
	over := RedisConfig{URL: named}
	if conf != nil {
		over.TTL, over.Prefix, over.Timeout, over.TLS = conf.TTL, conf.Prefix, conf.Timeout, conf.TLS
	}
	if _, _, err := over.options(); err != nil {
		return nil, usagef("--redis: %w", err)
	}
	return &over, nil
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// hasPassword reports whether user information in a URL, or in what is meant
// to be one, holds a password beside placeholders.
func hasPassword(url string) bool {
	rest := placeholder.ReplaceAllString(url, "")
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		return false
	}
	rest = rest[:at]
	if _, after, ok := strings.Cut(rest, "//"); ok {
		rest = after
	}
	_, password, ok := strings.Cut(rest, ":")
	return ok && password != ""
}
