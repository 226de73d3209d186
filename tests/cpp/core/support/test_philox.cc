#include "check.h"
#include "core/support/philox.h"
#include "core/support/rng.h"

// The known answers that Random123 (Salmon et al. 2011) publishes for philox4x32-10 in kat_vectors.
TEST(PhiloxMatchesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT((kvctl::Philox4x32({0, 0, 0, 0}, 0, 0) ==
          Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT((kvctl::Philox4x32({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u) ==
          Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT((kvctl::Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822,
                            0x299f31d0) == Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(EveryPartOfTheKeyChangesTheNumber) {
  using kvctl::Purpose;
  using kvctl::RandomStream;
  const uint64_t base = RandomStream{1, 2}.Bits(Purpose::kAccept, 3, 4);
  EXPECT(base == (RandomStream{1, 2}.Bits(Purpose::kAccept, 3, 4)));
  EXPECT(base != (RandomStream{2, 2}.Bits(Purpose::kAccept, 3, 4)));
  EXPECT(base != (RandomStream{1ull << 40 | 1, 2}.Bits(Purpose::kAccept, 3, 4)));
  EXPECT(base != (RandomStream{1, 3}.Bits(Purpose::kAccept, 3, 4)));
  EXPECT(base != (RandomStream{1, 1ull << 40 | 2}.Bits(Purpose::kAccept, 3, 4)));
  EXPECT(base != (RandomStream{1, 2}.Bits(Purpose::kResidual, 3, 4)));
  EXPECT(base != (RandomStream{1, 2}.Bits(Purpose::kAccept, 4, 4)));
  EXPECT(base != (RandomStream{1, 2}.Bits(Purpose::kAccept, 3, 5)));
}
