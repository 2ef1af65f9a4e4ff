package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// MasterKeyPath is the file that holds a generated master key: beside the
// database, never in it, so that a copy of the database alone opens nothing.
func (b *Backend) MasterKeyPath() string { return b.path + ".master-key" }

// MasterKey reads the generated master key. A missing file is
// auth.ErrNotInitialized and names the file.
func (b *Backend) MasterKey() (auth.Secret, error) {
	path := b.MasterKeyPath()
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return auth.Secret{}, auth.WithHint(fmt.Errorf("the master key file %s is missing: %w", path, auth.ErrNotInitialized),
			"put it back from the backup, or name the key with master_key; without it no key can be made or recognized")
	}
	if err != nil {
		return auth.Secret{}, fmt.Errorf("reading the master key: %w", notUsable(path, err))
	}
	key := auth.NewSecret(strings.TrimSpace(string(text)))
	if _, err := secret.ParseMasterKey(key); err != nil {
		return auth.Secret{}, fmt.Errorf("reading the master key file %s: %w", path, err)
	}
	return key, nil
}

// CreateMasterKey returns the generated master key, making its file (0600) if
// there is none. Call it only for a store that is not initialized yet: for
// another, a missing file is a loss that a new key would hide.
func (b *Backend) CreateMasterKey() (auth.Secret, error) {
	key, err := b.MasterKey()
	if !errors.Is(err, auth.ErrNotInitialized) {
		return key, err
	}
	key, err = secret.NewMasterKey()
	if err != nil {
		return key, err
	}
	path := b.MasterKeyPath()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return b.MasterKey() // another process was quicker
	}
	if err != nil {
		return key, fmt.Errorf("making the master key file: %w", notUsable(filepath.Dir(path), err))
	}
	_, err = f.WriteString(key.Reveal() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close(), Adopt(path, path)); err != nil {
		return key, fmt.Errorf("writing the master key file %s: %w", path, err)
	}
	return key, nil
}
