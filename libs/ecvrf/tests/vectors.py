# SPDX-License-Identifier: Apache-2.0
"""Published vectors; none is made by the code under test.

* RFC_9381: appendix B of the RFC, examples 10 to 21, with the intermediate values. Compared in two independent
  reprints of them (the test suite of the hash-to-curve reference code of the CFRG, and an implementation in Go).
* DRAFT_05: appendix A.1 of draft-irtf-cfrg-vrf-05 (P-256), and the tests of the crate `vrf` 0.2.5 (secp256k1).
* SECP256K1: test file ECVRF_SECP256K1_SHA256_TAI.json of the crate `vrf-rfc9381` (sedaprotocol/vrf-rs).
"""

from typing import NamedTuple


class Vector(NamedTuple):
    suite: str
    secret_key: str
    public_key: str
    alpha: str
    h: str
    k: str
    u: str
    v: str
    proof: str
    beta: str


P256_A = (
    "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721",
    "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
)
P256_B = (
    "2ca1411a41b17b24cc8c3b089cfd033f1920202a6c0de8abb97df1498d50d2c8",
    "03596375e6ce57e0f20294fc46bdfcfd19a39f8161b58695b3ec5b3d16427c274d",
)
ED_A = (
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
)
ED_B = (
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
)
ED_C = (
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
)
ECDSA_ALPHA = b"Example using ECDSA key from Appendix L.4.2 of ANSI.X9-62-2005".hex()

RFC_9381 = [
    Vector(
        "ECVRF-P256-SHA256-TAI",
        *P256_A,
        b"sample".hex(),
        "0272a877532e9ac193aff4401234266f59900a4a9e3fc3cfc6a4b7e467a15d06d4",
        "0d90591273453d2dc67312d39914e3a93e194ab47a58cd598886897076986f77",
        "02bb6a034f67643c6183c10f8b41dc4babf88bff154b674e377d90bde009c21672",
        "02893ebee7af9a0faa6da810da8a91f9d50e1dc071240c9706726820ff919e8394",
        "035b5c726e8c0e2c488a107c600578ee75cb702343c153cb1eb8dec77f4b5071b4"
        "a53f0a46f018bc2c56e58d383f2305e0"
        "975972c26feea0eb122fe7893c15af376b33edf7de17c6ea056d4d82de6bc02f",
        "a3ad7b0ef73d8fc6655053ea22f9bede8c743f08bbed3d38821f0e16474b505e",
    ),
    Vector(
        "ECVRF-P256-SHA256-TAI",
        *P256_A,
        b"test".hex(),
        "02173119b4fff5e6f8afed4868a29fe8920f1b54c2cf89cc7b301d0d473de6b974",
        "5852353a868bdce26938cde1826723e58bf8cb06dd2fed475213ea6f3b12e961",
        "022779a2cafcb65414c4a04a4b4d2adf4c50395f57995e89e6de823250d91bc48e",
        "033b4a14731672e82339f03b45ff6b5b13dee7ada38c9bf1d6f8f61e2ce5921119",
        "034dac60aba508ba0c01aa9be80377ebd7562c4a52d74722e0abae7dc3080ddb56"
        "c19e067b15a8a8174905b13617804534"
        "214f935b94c2287f797e393eb0816969d864f37625b443f30f1a5a33f2b3c854",
        "a284f94ceec2ff4b3794629da7cbafa49121972671b466cab4ce170aa365f26d",
    ),
    Vector(
        "ECVRF-P256-SHA256-TAI",
        *P256_B,
        ECDSA_ALPHA,
        "0258055c26c4b01d01c00fb57567955f7d39cd6f6e85fd37c58f696cc6b7aa761d",
        "5689e2e08e1110b4dda293ac21667eac6db5de4a46a519c73d533f69be2f4da3",
        "020f465cd0ec74d2e23af0abde4c07e866ae4e5138bded5dd1196b8843f380db84",
        "036cb6f811428fc4904370b86c488f60c280fa5b496d2f34ff8772f60ed24b2d1d",
        "03d03398bf53aa23831d7d1b2937e005fb0062cbefa06796579f2a1fc7e7b8c667"
        "d091c00b0f5c3619d10ecea44363b5a5"
        "99cadc5b2957e223fec62e81f7b4825fc799a771a3d7334b9186bdbee87316b1",
        "90871e06da5caa39a3c61578ebb844de8635e27ac0b13e829997d0d95dd98c19",
    ),
    Vector(
        "ECVRF-P256-SHA256-SSWU",
        *P256_A,
        b"sample".hex(),
        "02b31973e872d4a097e2cfae9f37af9f9d73428fde74ac537dda93b5f18dbc5842",
        "e92820035a0a8afe132826c6312662b6ea733fc1a0d33737945016de54d02dd8",
        "031490f49d0355ffcdf66e40df788bee93861917ee713acff79be40d20cc91a30a",
        "03701df0228138fa3d16612c0d720389326b3265151bc7ac696ea4d0591cd053e3",
        "0331d984ca8fece9cbb9a144c0d53df3c4c7a33080c1e02ddb1a96a365394c7888"
        "782fffde7b842c38c20c08de6ec6c2e7"
        "027a97000f2c9fa4425d5c03e639fb48fde58114d755985498d7eb234cf4aed9",
        "21e66dc9747430f17ed9efeda054cf4a264b097b9e8956a1787526ed00dc664b",
    ),
    Vector(
        "ECVRF-P256-SHA256-SSWU",
        *P256_A,
        b"test".hex(),
        "03ccc747fa7318b9486ce4044adbbecaa084c27be6eda88eb7b7f3d688fd0968c7",
        "febc3451ea7639fde2cf41ffd03f463124ecb3b5a79913db1ed069147c8a7dea",
        "031200f9900e96f811d1247d353573f47e0d9da601fc992566234fc1a5b37749ae",
        "02d3715dcfee136c7ae50e95ffca76f4ca6c29ddfb92a39c31a0d48e75c6605cd1",
        "03f814c0455d32dbc75ad3aea08c7e2db31748e12802db23640203aebf1fa8db27"
        "43aad348a3006dc1caad7da286873207"
        "40bf7dd78fe13c298867321ce3b36b79ec3093b7083ac5e4daf3465f9f43c627",
        "8e7185d2b420e4f4681f44ce313a26d05613323837da09a69f00491a83ad25dd",
    ),
    Vector(
        "ECVRF-P256-SHA256-SSWU",
        *P256_B,
        ECDSA_ALPHA,
        "022dd5150e5a2a24c66feab2f68532be1486e28e07f1b9a055cf38ccc16f6595ff",
        "8e29221f33564f3f66f858ba2b0c14766e1057adbd422c3e7d0d99d5e142b613",
        "03a8823ff9fd16bf879261c740b9c7792b77fee0830f21314117e441784667958d",
        "02d48fbb45921c755b73b25be2f23379e3ce69294f6cee9279815f57f4b422659d",
        "039f8d9cdc162c89be2871cbcb1435144739431db7fab437ab7bc4e2651a9e99d5"
        "488405a11a6c7fc8defddd9e1573a563"
        "b7333aab4effe73ae9803274174c659269fd39b53e133dcd9e0d24f01288de9a",
        "4fbadf33b42a5f42f23a6f89952d2e634a6e3810f15878b46ef1bb85a04fe95a",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-TAI",
        *ED_A,
        "",
        "91bbed02a99461df1ad4c6564a5f5d829d0b90cfc7903e7a5797bd658abf3318",
        "8a49edbd1492a8ee09766befe50a7d563051bf3406cbffc20a88def030730f0f",
        "aef27c725be964c6a9bf4c45ca8e35df258c1878b838f37d9975523f09034071",
        "5016572f71466c646c119443455d6cb9b952f07d060ec8286d678615d55f954f",
        "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f"
        "26f8a57ccaed74ee1b190bed1f479d97"
        "27d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805",
        "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff"
        "66b71dda49d2de59d03450451af026798e8f81cd2e333de5cdf4f3e140fdd8ae",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-TAI",
        *ED_B,
        "72",
        "5b659fc3d4e9263fd9a4ed1d022d75eaacc20df5e09f9ea937502396598dc551",
        "d8c3a66921444cb3427d5d989f9b315aa8ca3375e9ec4d52207711a1fdb44107",
        "1dcb0a4821a2c48bf53548228b7f170962988f6d12f5439f31987ef41f034ab3",
        "fd03c0bf498c752161bae4719105a074630a2aa5f200ff7b3995f7bfb1513423",
        "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed593"
        "3bf0864a62558b3ed7f2fea45c92a465"
        "301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02",
        "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb"
        "5e33821bc613efb94db5e5b54c70a848a0bef4553a41befc57663b56373a5031",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-TAI",
        *ED_C,
        "af82",
        "bf4339376f5542811de615e3313d2b36f6f53c0acfebb482159711201192576a",
        "5ffdbc72135d936014e8ab708585fda379405542b07e3bd2c0bd48437fbac60a",
        "2bae73e15a64042fcebf062abe7e432b2eca6744f3e8265bc38e009cd577ecd5",
        "88cba1cb0d4f9b649d9a86026b69de076724a93a65c349c988954f0961c5d506",
        "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf80"
        "96bb474e53895c362d8628ee9f9ea3c0"
        "e52c7a5c691b6c18c9979866568add7a2d41b00b05081ed0f58ee5e31b3a970e",
        "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c45"
        "2118fec1219202a0edcf038bb6373241578be7217ba85a2687f7a0310b2df19f",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-ELL2",
        *ED_A,
        "",
        "b8066ebbb706c72b64390324e4a3276f129569eab100c26b9f05011200c1bad9",
        "55cbb247af9b8372259a97b2cfec656d78868deb33b203d51b9961c364522400",
        "762f5c178b68f0cddcc1157918edf45ec334ac8e8286601a3256c3bbf858edd9",
        "4652eba1c4612e6fce762977a59420b451e12964adbe4fbecd58a7aeff5860af",
        "7d9c633ffeee27349264cf5c667579fc583b4bda63ab71d001f89c10003ab46f"
        "14adf9a3cd8b8412d9038531e865c341"
        "cafa73589b023d14311c331a9ad15ff2fb37831e00f0acaa6d73bc9997b06501",
        "9d574bf9b8302ec0fc1e21c3ec5368269527b87b462ce36dab2d14ccf80c53cc"
        "cf6758f058c5b1c856b116388152bbe509ee3b9ecfe63d93c3b4346c1fbc6c54",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-ELL2",
        *ED_B,
        "72",
        "76ac3ccb86158a9104dff819b1ca293426d305fd76b39b13c9356d9b58c08e57",
        "9565956daeedf376cad61b829b2a4d21ba1b52e9b3e2457477a64630a9711003",
        "8ec26e77b8cb3114dd2265fe1564a4efb40d109aa3312536d93dfe3d8d80a061",
        "fe799eb5770b4e3a5a27d22518bb631db183c8316bb552155f442c62a47d1c8b",
        "47b327393ff2dd81336f8a2ef10339112401253b3c714eeda879f12c509072ef"
        "055b48372bb82efbdce8e10c8cb9a2f9"
        "d60e93908f93df1623ad78a86a028d6bc064dbfc75a6a57379ef855dc6733801",
        "38561d6b77b71d30eb97a062168ae12b667ce5c28caccdf76bc88e093e463598"
        "7cd96814ce55b4689b3dd2947f80e59aac7b7675f8083865b46c89b2ce9cc735",
    ),
    Vector(
        "ECVRF-EDWARDS25519-SHA512-ELL2",
        *ED_C,
        "af82",
        "13d2a8b5ca32db7e98094a61f656a08c6c964344e058879a386a947a4e189ed1",
        "1fda4077f737098b3f361c33a36cccafd7e9e9b720e1f84011254e25f37eed02",
        "a012f35433df219a88ab0f9481f4e0065d00422c3285f3d34a8b0202f20bac60",
        "fb613986d171b3e98319c7ca4dc44c5dd8314a6e5616c1a4f16ce72bd7a0c25a",
        "926e895d308f5e328e7aa159c06eddbe56d06846abf5d98c2512235eaa57fdce"
        "35b46edfc655bc828d44ad09d1150f31"
        "374e7ef73027e14760d42e77341fe05467bb286cc2c9d7fde29120a0b2320d04",
        "121b7f9b9aaaa29099fc04a94ba52784d44eac976dd1a3cca458733be5cd090a"
        "7b5fbd148444f17f8daf1fb55cb04b1ae85a626e30a54b4b0f8abf4a43314a58",
    ),
]

# suite, public key, alpha, proof, beta
DRAFT_05 = [
    (
        "ECVRF-P256-SHA256-TAI-draft-05",
        P256_A[1],
        b"sample".hex(),
        "029bdca4cc39e57d97e2f42f88bcf0ecb1120fb67eb408a856050dbfbcbf57c524347fc46ccd87843ec0a9fdc090a407c6"
        "fbae8ac1480e240c58854897eabbc3a7bb61b201059f89186e7175af796d65e7",
        "59ca3801ad3e981a88e36880a3aee1df38a0472d5be52d6e39663ea0314e594c",
    ),
    (
        "ECVRF-P256-SHA256-TAI-draft-05",
        P256_A[1],
        b"test".hex(),
        "03873a1cce2ca197e466cc116bca7b1156fff599be67ea40b17256c4f34ba2549c94ffd2b31588b5fe034fd92c87de5b52"
        "0b12084da6c4ab63080a7c5467094a1ee84b80b59aca54bba2e2baa0d108191b",
        "dc85c20f95100626eddc90173ab58d5e4f837bb047fb2f72e9a408feae5bc6c1",
    ),
    (
        "ECVRF-P256-SHA256-TAI-draft-05",
        P256_B[1],
        b"Example of ECDSA with ansip256r1 and SHA-256".hex(),
        "02abe3ce3b3aa2ab3c6855a7e729517ebfab6901c2fd228f6fa066f15ebc9b9d415a680736f7c33f6c796e367f7b2f4670"
        "26495907affb124be9711cf0e2d05722d3a33e11d0c5bf932b8f0c5ed1981b64",
        "e880bde34ac5263b2ce5c04626870be2cbff1edcdadabd7d4cb7cbc696467168",
    ),
    (
        "ECVRF-SECP256K1-SHA256-TAI-draft-05",
        "032c8c31fc9f990c6b55e3865a184a4ce50e09481f2eaeb3e60ec1cea13a6ae645",
        b"sample".hex(),
        "031f4dbca087a1972d04a07a779b7df1caa99e0f5db2aa21f3aecc4f9e10e85d08748c9fbe6b95d17359707bfb8e8ab0c9"
        "3ba0c515333adcb8b64f372c535e115ccf66ebf5abe6fadb01b5efb37c0a0ec9",
        "612065e309e937ef46c2ef04d5886b9c6efd2991ac484ec64a9b014366fc5d81",
    ),
    (
        "ECVRF-SECP256K1-SHA256-TAI-draft-05",
        "032c8c31fc9f990c6b55e3865a184a4ce50e09481f2eaeb3e60ec1cea13a6ae645",
        b"sample".hex(),
        "031f4dbca087a1972d04a07a779b7df1caa99e0f5db2aa21f3aecc4f9e10e85d0814faa89697b482daa377fb6b4a8b0191"
        "a65d34a6d90a8a2461e5db9205d4cf0bb4b2c31b5ef6997a585a9f1a72517b6f",
        "612065e309e937ef46c2ef04d5886b9c6efd2991ac484ec64a9b014366fc5d81",
    ),
]

# secret key, public key, proof, beta; alpha is "sample"
SECP256K1 = [
    (
        "01",
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
        "02740dbf5b241f1badd8b7a79af219b9967c2fd0606a55e0e9331b391d70d544c621a2704cf30227a63b58e41b45e5dd58"
        "9a16c2d886d71c2d5a0901a315027d0b7602a777a99693ffd8cca7054799ac95",
        "016314744433d388b614524d2db951ddf0f91d44b73e7535fb21efe33e606f48",
    ),
    (
        "02",
        "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
        "0257aa0e5e05f03085afe262f3d27c7bb27d2c31a61d3aeffcf1432c15a8fc2dffaf24fffd58154dfa57290ed0d9e26757"
        "b6e35976c028f564c0aba71488aa34da47d43b24f599f4bdd3882ceaa4a702d2",
        "a5e94494ac2c8e857fad5f065e9fb1125af826df815946cf40808e20b6384ebc",
    ),
    (
        "018EBBB95EED0E13",
        "02a90cc3d3f3e146daadfc74ca1372207cb4b725ae708cef713a98edd73d99ef29",
        "03fb5cc1301a56e949a7a4176e1c1462e799169e4e8a36855eb74b28eb52f8f05c25c2b30bf31ae6759a4b10c750926c9c"
        "e62687a557ce7be544722559a787b22f4bc6671fef05a62e3943488ad18b8421",
        "f137b651ad3a2869be52481f735073846ebb02927fece2be1c0ecc485a1d1188",
    ),
    (
        "7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0",
        "0300000000000000000000003b78ce563f89a0ed9414f5aa28ad0d96d6795f9c63",
        "031a36dfe62ae2465107e4927ee2a2f1c71e790822990e3bbd759c445074adcbcba5d427bf500efa683afec8a7511ef302"
        "e3a9dc46c9d61ab9b5db56630d707c09044425346b79f32546a80a8f4dbae3c5",
        "59439addde709d5ff1c749a1c2da2be9b0468517cf2a213125327594ac8f0c96",
    ),
    (
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364130",
        "02defdea4cdb677750a420fee807eacf21eb9898ae79b9768766e4faa04a2d4a34",
        "0273b91907e6e97e368fbbc4b1b14223c475dfc1e42078506d442d1db3ed85d3260f37af2b15cd684a9d45a23c6b823927"
        "44a1afcbf22c0bdf9f75b2ee9d4a978897407d2db90eabac56b5b7649fa00cd1",
        "79203e19ef40adc24a291ba1f3909cc4ce10ea11748e308f2bcd7b7ef8f9c958",
    ),
]
