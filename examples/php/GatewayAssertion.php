<?php
declare(strict_types=1);

/** The request did not come through the gateway, or what it says is not true. Answer 401. */
final class Refused extends RuntimeException {}
/** The gateway's keys can't be had, so nobody can tell. Answer 503. */
final class Unavailable extends RuntimeException {}

/**
 * Who is calling, as the gateway says: checks X-Auth-Assertion. Needs PHP 8.1
 * with sodium (EdDSA) and openssl (ES256), both part of PHP, and no library.
 *
 *   $gateway = new GatewayAssertion('orders', keysUrl: 'https://api.example.com/.well-known/jwks.json');
 *   $caller = $gateway->identify($_SERVER);
 */
final class GatewayAssertion
{
    private const LEEWAY = 5; // seconds that the gateway's clock may be off
    private const CACHED = 300; // seconds that keys are kept
    private array $keys = [];

    public function __construct(
        private string $audience,
        private ?string $keysUrl = null,
        ?array $keySet = null,
        private ?string $issuer = null,
        private ?int $now = null,
        private ?string $cacheDir = null, // a directory of this service's own; default: the system's for temporary files
    ) {
        if ($audience === '' || ($keysUrl === null) === ($keySet === null)) {
            throw new InvalidArgumentException('want an audience, and keysUrl or keySet');
        }
        if ($keySet !== null) {
            $this->keys = $this->readKeys(array_filter($keySet['keys'] ?? [], 'is_array'));
        }
    }

    /** Returns the claims of a request's assertion. */
    public function identify(array $server): array
    {
        $token = $server['HTTP_X_AUTH_ASSERTION'] ?? '';
        if ($token === '') {
            throw new Refused('no assertion');
        }
        return $this->verify($token, $server['REQUEST_METHOD'], explode('?', $server['REQUEST_URI'], 2)[0]);
    }

    /** Returns the claims of an assertion for a method and a path, as it was sent. */
    public function verify(string $token, string $method, string $path): array
    {
        $parts = explode('.', $token);
        if (count($parts) !== 3 || strlen($token) > 16384) {
            throw new Refused('not an assertion');
        }
        [$header, $claims] = [self::object($parts[0]), self::object($parts[1])];
        if (($header['typ'] ?? null) !== 'caddy-auth-assertion+jwt' || isset($header['crit'])) {
            throw new Refused('a token for another purpose'); // is no assertion
        }
        $key = $this->key($header['kid'] ?? null);
        if (($header['alg'] ?? null) !== $key['alg'] || !self::signed($key, "$parts[0].$parts[1]", self::decode($parts[2]))) {
            throw new Refused('the signature');
        }
        $this->check($claims, $method, $path);
        return $claims;
    }

    private function check(array $claims, string $method, string $path): void
    {
        $now = $this->now ?? time();
        $exp = $claims['exp'] ?? null;
        $nbf = $claims['nbf'] ?? 0;
        $sub = $claims['sub'] ?? null;
        $wrong = match (true) {
            !is_int($exp) || !is_int($nbf) => 'exp or nbf is no number',
            $now >= $exp + self::LEEWAY, $nbf > $now + self::LEEWAY => 'expired, or not valid yet',
            ($claims['aud'] ?? null) !== $this->audience => 'for another audience',
            $this->issuer !== null && ($claims['iss'] ?? null) !== $this->issuer => 'of another issuer',
            ($claims['htm'] ?? null) !== $method, ($claims['path'] ?? null) !== $path => 'for another method or path',
            !is_string($sub) || $sub === '' => 'no subject',
            default => '',
        };
        if ($wrong !== '') {
            throw new Refused($wrong);
        }
    }

    /** The key's own algorithm is used, whatever the token says. */
    private static function signed(array $key, string $text, string $signature): bool
    {
        if (strlen($signature) !== 64) {
            return false;
        }
        if ($key['alg'] === 'EdDSA') {
            return sodium_crypto_sign_verify_detached($signature, $text, $key['key']);
        }
        return openssl_verify($text, self::der($signature), $key['key'], OPENSSL_ALGO_SHA256) === 1;
    }

    /** An ECDSA signature as openssl wants it: a sequence of two integers. */
    private static function der(string $signature): string
    {
        $body = '';
        foreach (str_split($signature, 32) as $number) {
            $number = ltrim($number, "\0");
            if ($number === '' || ord($number[0]) > 0x7f) {
                $number = "\0" . $number;
            }
            $body .= "\x02" . chr(strlen($number)) . $number;
        }
        return "\x30" . chr(strlen($body)) . $body;
    }

    private function key(mixed $kid): array
    {
        if (!is_string($kid)) {
            throw new Refused('an unknown key');
        }
        if ($this->keys === [] || !isset($this->keys[$kid])) {
            $this->fetch($kid);
        }
        if ($this->keys === []) {
            throw new Unavailable("the gateway's keys can't be had");
        }
        return $this->keys[$kid] ?? throw new Refused('an unknown key');
    }

    /**
     * Keys are kept in a file between requests, since PHP forgets everything
     * else. One request fetches at a time, and not again soon; the others go on
     * with what there is.
     */
    private function fetch(string $kid): void
    {
        if ($this->keysUrl === null) {
            return;
        }
        $file = ($this->cacheDir ?? sys_get_temp_dir()) . '/gateway-keys-' . hash('sha256', $this->keysUrl . "\0" . __FILE__);
        $this->keys = $this->readKeys(self::set((string) @file_get_contents($file)));
        $age = time() - (int) @filemtime($file);
        $tried = time() - (int) @filemtime("$file.tried");
        if (isset($this->keys[$kid]) && $age <= self::CACHED || $tried < ($this->keys === [] ? 1 : 30)) {
            return;
        }
        $lock = @fopen("$file.tried", 'c');
        if ($lock === false || !flock($lock, LOCK_EX | LOCK_NB)) {
            return;
        }
        @touch("$file.tried");
        $context = stream_context_create(['http' => ['timeout' => 3, 'follow_location' => 0]]);
        $fresh = (string) @file_get_contents($this->keysUrl, context: $context, length: 1 << 20);
        $keys = $this->readKeys(self::set($fresh));
        if ($keys !== []) {
            $this->keys = $keys;
            $new = "$file." . bin2hex(random_bytes(8));
            if (@file_put_contents($new, $fresh) === false || !@rename($new, $file)) {
                @unlink($new);
            }
        }
    }

    /** The members of a key set; none, if it is not one. */
    private static function set(string $text): array
    {
        $set = json_decode($text, true, 16);
        $members = is_array($set) ? $set['keys'] ?? [] : [];
        return is_array($members) ? array_filter($members, 'is_array') : [];
    }

    /** What is no key that assertions are signed with is passed over. */
    private function readKeys(array $members): array
    {
        $keys = [];
        foreach ($members as $jwk) {
            [$kid, $alg, $crv] = [$jwk['kid'] ?? null, $jwk['alg'] ?? null, $jwk['crv'] ?? null];
            $x = self::bytes($jwk['x'] ?? null);
            if (!is_string($kid) || $kid === '' || strlen($x) !== 32) {
                continue;
            }
            if ($alg === 'EdDSA' && $crv === 'Ed25519') {
                $keys[$kid] = ['alg' => 'EdDSA', 'key' => $x];
            } elseif ($alg === 'ES256' && $crv === 'P-256' && strlen($y = self::bytes($jwk['y'] ?? null)) === 32) {
                // A public key on P-256, as X.509 writes it (RFC 5480).
                $point = hex2bin('3059301306072a8648ce3d020106082a8648ce3d030107034200') . "\x04" . $x . $y;
                $pem = "-----BEGIN PUBLIC KEY-----\n" . chunk_split(base64_encode($point), 64, "\n") . "-----END PUBLIC KEY-----\n";
                if (($key = openssl_pkey_get_public($pem)) !== false) {
                    $keys[$kid] = ['alg' => 'ES256', 'key' => $key];
                }
            }
        }
        return $keys;
    }

    private static function bytes(mixed $text): string
    {
        try {
            return is_string($text) ? self::decode($text) : '';
        } catch (Refused) {
            return '';
        }
    }

    private static function object(string $part): array
    {
        $object = json_decode(self::decode($part), false, 16);
        return $object instanceof stdClass ? json_decode(self::decode($part), true, 16) : throw new Refused('not an assertion');
    }

    private static function decode(string $text): string
    {
        if (preg_match('/[^A-Za-z0-9_-]/', $text)) {
            throw new Refused('not an assertion');
        }
        $raw = base64_decode(strtr($text, '-_', '+/'), true);
        return $raw === false ? throw new Refused('not an assertion') : $raw;
    }
}
