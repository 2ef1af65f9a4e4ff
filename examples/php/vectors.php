<?php
// Judges the vectors that every verifier must judge alike: php vectors.php ../vectors.json
declare(strict_types=1);
require __DIR__ . '/GatewayAssertion.php';

$vectors = json_decode(file_get_contents($argv[1]), true);
$gateway = new GatewayAssertion($vectors['audience'], keySet: $vectors['key_set'], issuer: $vectors['issuer'], now: $vectors['now']);
foreach ($vectors['cases'] as $case) {
    try {
        $claims = $gateway->verify($case['token'], $case['method'], $case['path']);
        echo json_encode(['name' => $case['name'], 'valid' => true, 'subject' => $claims['sub']]), "\n";
    } catch (Refused) {
        echo json_encode(['name' => $case['name'], 'valid' => false]), "\n";
    }
}
