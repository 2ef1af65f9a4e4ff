// Program go is a client of an API behind the gateway, with
// golang.org/x/oauth2/clientcredentials. It does what lines on standard input
// say: "call" calls the API, "revoke" ends the token. Run it with:
//
//	ISSUER=https://api.example.com API_URL=https://api.example.com/orders CLIENT_ID=client_… CLIENT_SECRET=ca_cs_… go run .
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

func main() {
	c := newClient(os.Getenv("ISSUER"), os.Getenv("CLIENT_ID"), os.Getenv("CLIENT_SECRET"))
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var answer map[string]any
		var err error
		switch lines.Text() {
		case "call":
			answer, err = c.call(os.Getenv("API_URL"))
		case "revoke":
			answer, err = c.revoke(os.Getenv("ISSUER") + "/oauth/revoke")
		}
		if err != nil {
			answer = map[string]any{"error": code(err)}
		}
		_ = out.Encode(answer)
	}
}

// code is the server's error code, if it said one (RFC 6749, 5.2).
func code(err error) string {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) {
		return refused.ErrorCode
	}
	return err.Error()
}

// client keeps its token until shortly before it expires, or until the API
// refuses it.
type client struct {
	config clientcredentials.Config

	mu     sync.Mutex
	source oauth2.TokenSource
}

func newClient(issuer, id, secret string) *client {
	c := &client{config: clientcredentials.Config{
		ClientID: id, ClientSecret: secret, TokenURL: issuer + "/oauth/token",
		AuthStyle: oauth2.AuthStyleInHeader, // else a refusal is tried again in the other way
	}}
	c.forget()
	return c
}

func (c *client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.source = c.config.TokenSource(context.Background())
}

func (c *client) token() (*oauth2.Token, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.source.Token()
}

// call calls the API. A token that was ended early is replaced once.
func (c *client) call(api string) (map[string]any, error) {
	for tries := 1; ; tries++ {
		token, err := c.token()
		if err != nil {
			return nil, err
		}
		r, err := http.NewRequest(http.MethodGet, api, nil)
		if err != nil {
			return nil, err
		}
		token.SetAuthHeader(r)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return nil, err
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized || tries == 2 {
			return map[string]any{"status": answer.StatusCode, "tries": tries}, nil
		}
		c.forget()
	}
}

func (c *client) revoke(endpoint string) (map[string]any, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(http.MethodPost, endpoint, strings.NewReader(url.Values{"token": {token.AccessToken}}.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(url.QueryEscape(c.config.ClientID), url.QueryEscape(c.config.ClientSecret)) // RFC 6749, 2.3.1
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("revoking: status %d", answer.StatusCode)
	}
	return map[string]any{"status": answer.StatusCode}, nil
}
