package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func gatewayCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "gateway",
		Usage: "[--from ADDR] [--to ADDR] [--data DIR]",
		Short: "Runs a gateway at once, without a configuration",
		Long: `Runs a gateway with an embedded store and prints, the first time, a ready key and
a curl line. Without --to it proxies to a built-in upstream that shows the
headers it received. Ctrl-C ends it.`,
		CobraFunc: func(cmd *cobra.Command) {
			quiet(cmd)
			f := cmd.Flags()
			f.String("from", "127.0.0.1:8080", "the address to listen on")
			f.StringSlice("to", nil, "the upstream, as caddy reverse-proxy takes it: host:port, :port, https://host, unix//path; may be repeated (default: a built-in echo)")
			f.String("data", dataDir, "the directory of the store")
			f.StringArray("scope", nil, "a scope of the first key; may be repeated")
			f.String("env", auth.EnvironmentLive, "the environment of the first key, and the one that is accepted")
			f.Bool("json", false, "print the key and the address as JSON")
			cmd.RunE = run(gateway)
		},
	}
}

func gateway(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return err
	}
	from, _ := s.cmd.Flags().GetString("from")
	to, _ := s.cmd.Flags().GetStringSlice("to")
	data, _ := s.cmd.Flags().GetString("data")
	env, _ := s.cmd.Flags().GetString("env")
	scopes, _ := s.cmd.Flags().GetStringArray("scope")
	if err := errors.Join(checkAddress("--from", from), secret.CheckEnvironment(env)); err != nil {
		return err
	}
	if err := auth.CheckNewScopes(scopes); err != nil {
		return err
	}
	shown := strings.Join(to, ", ")
	if len(to) == 0 {
		addr, err := startEcho()
		if err != nil {
			return err
		}
		to, shown = []string{addr}, "a built-in echo"
	}
	proxy, err := proxyTo(to)
	if err != nil {
		return err
	}
	if err := checkFree(from); err != nil {
		return err
	}
	backend := sqlite.New(filepath.Join(data, dataFile))
	if err := checkFileOwner(backend); err != nil {
		return err
	}
	caddy.TrapSignals()
	if err := caddy.Run(gatewayConfig(from, proxy, backend.Path(), env)); err != nil {
		return err
	}
	if err := s.announce(ctx, backend, from, shown, manage.KeySpec{Owner: "first-key", Environment: env, Scopes: scopes}); err != nil {
		return errors.Join(err, caddy.Stop())
	}
	select {} // TrapSignals ends the process
}

func checkAddress(flag, addr string) error {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return usagef("%s %q: want host:port", flag, addr)
	}
	return nil
}

// proxyTo is the handler that proxies to upstreams, which are written as in a
// Caddyfile.
func proxyTo(upstreams []string) (json.RawMessage, error) {
	var words []string
	for _, u := range upstreams {
		if strings.ContainsAny(u, "\r\n") || u == "" {
			return nil, usagef("--to %q: want one upstream, such as 127.0.0.1:9000 or https://api.example.com", u)
		}
		words = append(words, strconv.Quote(u))
	}
	text := fmt.Sprintf(":1 {\n\treverse_proxy %s\n}\n", strings.Join(words, " "))
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		cause, _, _ := strings.Cut(err.Error(), ", at ")
		return nil, usagef("--to %s: %s", strings.Join(upstreams, " "), cause)
	}
	proxies := handlersNamed(adapted, "reverse_proxy")
	if len(proxies) != 1 {
		return nil, usagef("--to %s: no upstream", strings.Join(upstreams, " "))
	}
	for _, u := range asList(proxies[0]["upstreams"]) {
		fields, _ := u.(map[string]any)
		dial, _ := fields["dial"].(string)
		if _, port, err := net.SplitHostPort(dial); !strings.HasPrefix(dial, "unix") && (err != nil || !digits(port)) {
			return nil, usagef("--to %s: want host:port, :port, https://host or unix//path", strings.Join(upstreams, " "))
		}
	}
	out, err := json.Marshal(proxies[0])
	if err != nil {
		return nil, fmt.Errorf("reading the upstream: %w", err)
	}
	return out, nil
}

func digits(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// checkFree refuses an address that another process listens on: Caddy would share
// it, and each would get some of the requests.
func checkFree(addr string) error {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return auth.WithHint(fmt.Errorf("--from %s: something listens there already", addr), "end that, or choose another port: --from 127.0.0.1:8081")
	}
	if err != nil {
		return fmt.Errorf("--from %s: %w", addr, err)
	}
	return l.Close()
}

// announce makes the first key, if there is none, and says how to use it.
func (s *session) announce(ctx context.Context, backend *sqlite.Backend, from, to string, spec manage.KeySpec) error {
	db, err := store.Open(ctx, backend, store.Existing)
	if err != nil {
		return err
	}
	defer db.Close()
	url := "http://" + from + "/"
	if host, port, err := net.SplitHostPort(from); err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		url = "http://127.0.0.1:" + port + "/"
	}
	keys := 0
	if err := db.Keys(ctx, store.KeyFilter{Limit: 1}, func(*auth.Key) error { keys++; return nil }); err != nil {
		return err
	}
	if keys > 0 {
		s.note("gateway on %s, proxying to %s; store: %s", url, to, backend.Path())
		s.note("make a key with: caddy-auth key create --owner NAME --store sqlite:%s", backend.Path())
		if s.json {
			return printJSON(s.out, map[string]any{"url": url})
		}
		return nil
	}
	t := &target{backend: backend, prefix: DefaultKeyPrefix}
	made, err := manage.New(db, actor(), t.prefix, t.minter(db)).Create(ctx, spec)
	if err != nil {
		return err
	}
	if s.json {
		return printJSON(s.out, map[string]any{"url": url, "id": made.Key.ID, "key": made.Text.Reveal()})
	}
	s.note("gateway on %s, proxying to %s; store: %s", url, to, backend.Path())
	s.note("the first key, shown this once, and how to use it:")
	_, err = fmt.Fprintf(s.out, "%s\ncurl -H 'X-API-Key: %s' %s\n", made.Text.Reveal(), made.Text.Reveal(), url)
	s.note("Ctrl-C ends the gateway.")
	return err
}

// gatewayConfig is the configuration of the gateway command.
func gatewayConfig(from string, proxy json.RawMessage, path, env string) *caddy.Config {
	raw := func(v any) json.RawMessage {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // maps of strings
		}
		return b
	}
	type m = map[string]any
	persist := false
	cfg := &caddy.Config{
		Admin:      &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &persist}},
		StorageRaw: raw(m{"module": "file_system", "root": filepath.Join(filepath.Dir(path), "caddy")}),
		AppsRaw: caddy.ModuleMap{
			"auth": raw(m{"store": m{"driver": "sqlite", "path": path}}),
			"http": raw(m{"servers": m{"gateway": m{
				"listen":          []string{from},
				"protocols":       []string{"h1", "h2c"},
				"automatic_https": m{"disable": true},
				"routes": []m{{"handle": []any{
					m{"handler": "auth", "environments": []string{env}},
					proxy,
				}}},
			}}}),
		},
	}
	console := m{"format": "console"}
	if os.Getenv("NO_COLOR") != "" || !term.IsTerminal(int(os.Stderr.Fd())) { // https://no-color.org
		console["level_format"] = "upper"
	}
	encoder := m{"format": "auth_redact", "wrap": console}
	if err := json.Unmarshal(raw(m{"logs": m{
		"default": m{"level": "WARN", "exclude": []string{"auth"}, "encoder": encoder},
		"auth":    m{"level": "INFO", "include": []string{"auth"}, "encoder": encoder},
	}}), &cfg.Logging); err != nil {
		panic(err) // the text above
	}
	return cfg
}

// startEcho serves an upstream that shows what it received.
func startEcho() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("starting the echo upstream: %w", err)
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(echo)}
	go func() { _ = srv.Serve(l) }() // ends with the process
	return l.Addr().String(), nil
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]any{"method": r.Method, "target": r.RequestURI, "headers": r.Header}) // the client may be gone
}
