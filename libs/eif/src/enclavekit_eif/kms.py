# SPDX-License-Identifier: Apache-2.0
"""Sign with a key that stays in AWS KMS. Needs boto3: `pip install enclavekit-eif[kms]`.

KMS gets the digest of the Sig_structure and nothing of the image; the key's region is in its ARN, credentials and
endpoint are boto3's own business (AWS_PROFILE, AWS_ENDPOINT_URL_KMS, an instance role).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from enclavekit_core.errors import InputError, TransportError

from enclavekit_eif.detached import signing_request
from enclavekit_eif.signature import EifSignature, algorithm_of, raw_signature, signature_section

# the pattern of aws-nitro-enclaves-image-format; an alias has no place in it
ARN = re.compile(r"arn:(?:aws|aws-cn|aws-us-gov):kms:(?P<region>[a-z0-9-]+):\d{12}:key[:/][A-Za-z0-9-]+")


@dataclass(frozen=True)
class KmsSigner:
    key_arn: str
    certificate_pem: bytes
    client: Any = field(repr=False)
    """boto3's KMS client."""

    def sign(self, pcr0: bytes) -> bytes:
        """Return the signature section's data. Raises TransportError if KMS refuses or cannot be reached."""
        from botocore.exceptions import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            BotoCoreError,
            ClientError,
        )

        algorithm = algorithm_of(EifSignature(self.certificate_pem, b"").certificate())
        request = signing_request(algorithm, pcr0)
        try:
            answer = self.client.sign(
                KeyId=self.key_arn,
                Message=request.digest,
                MessageType="DIGEST",
                SigningAlgorithm=algorithm.name,
            )
        except (BotoCoreError, ClientError) as exc:
            raise TransportError("sign with", self.key_arn, " ".join(str(exc).split())) from exc
        raw = raw_signature(answer["Signature"], algorithm)
        return signature_section(self.certificate_pem, algorithm, pcr0, raw)


def kms_signer(key_arn: str, certificate_pem: bytes) -> KmsSigner:
    """Return a signer for the key with this ARN; nothing is sent yet. Raises InputError."""
    match = ARN.fullmatch(key_arn)
    if match is None:
        raise InputError("sign with", key_arn, "not the ARN of a KMS key (arn:aws:kms:REGION:ACCOUNT:key/ID)")
    try:
        import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]  # optional, and without types
        from botocore.exceptions import BotoCoreError
    except ImportError as exc:
        raise InputError("sign with", key_arn, "boto3 is missing: pip install 'enclavekit-eif[kms]'") from exc
    try:
        client = boto3.client("kms", region_name=match["region"])
    except (BotoCoreError, ValueError) as exc:
        raise TransportError("sign with", key_arn, str(exc)) from exc
    return KmsSigner(key_arn, certificate_pem, client)
