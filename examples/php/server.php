<?php
// A service behind the gateway. Run it with:
//   KEYS_URL=https://api.example.com/.well-known/jwks.json AUDIENCE=orders php -S 127.0.0.1:9000 server.php
declare(strict_types=1);
ini_set('display_errors', '0');
require __DIR__ . '/GatewayAssertion.php';

$gateway = new GatewayAssertion(getenv('AUDIENCE'), keysUrl: getenv('KEYS_URL'), issuer: getenv('ISSUER') ?: null);
header('Content-Type: application/json');
try {
    $caller = $gateway->identify($_SERVER);
    echo json_encode(['hello' => $caller['sub'], 'scopes' => $caller['scope'] ?? '']);
} catch (Refused $error) {
    http_response_code(401);
    echo json_encode(['error' => $error->getMessage()]);
} catch (Throwable $error) { // Unavailable, or what nobody thought of: never an answer as if it had passed
    http_response_code(503);
    echo json_encode(['error' => $error instanceof Unavailable ? $error->getMessage() : 'something is wrong here']);
}
