# The core without Python, for the C++ programs of the tests: one set of objects per variant, shared by every folder of programs.
# Included with HERE (the folder), PROGRAMS (one .cpp each) and HEADERS set; gives $(OUT)/VARIANT-$(WITH)/PROGRAM for each variant.
#   DIGEST=crc32c                 builds as on a machine without <xxhash.h>
#   WITHOUT="uring zstd lz4"      and as on one without these libraries; what there is is found as setup.py finds it
#   OUT=DIR                       where objects and programs go

ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/../..)
OUT ?= $(ROOT)/build/programs
CXX ?= g++
ifndef DIGEST
DIGEST := $(if $(shell $(CXX) -include xxhash.h -x c++ -fsyntax-only /dev/null 2>&1),crc32c,xxh3_128)
endif
WITHOUT ?= $(DYN_GPU_FT_BUILD_WITHOUT)
FOUND_LIBRARIES := $(shell CXX="$(CXX)" DYN_GPU_FT_BUILD_WITHOUT="$(WITHOUT)" sh $(ROOT)/csrc/libraries.sh)
# What a program was built with, as a part of its folder's name: xxh3_128-uring-zstd-lz4
EMPTY :=
WITH := $(subst $(EMPTY) ,-,$(strip $(DIGEST) $(patsubst -l:lib%.a,%,$(filter -l%,$(FOUND_LIBRARIES)))))

SOURCES := $(filter-out $(ROOT)/csrc/bind%,$(wildcard $(ROOT)/csrc/*.cpp $(ROOT)/csrc/*/*.cpp))
COMMON := -std=c++20 -g1 -Wall -Wextra -Werror -pthread $(if $(filter xxh3_128,$(DIGEST)),-DGFT_HAVE_XXHASH) \
          $(filter -D%,$(FOUND_LIBRARIES))
LIBRARIES := $(filter -l%,$(FOUND_LIBRARIES)) -ldl
FLAGS_plain := -O2
FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FLAGS_tsan := -O1 -fsanitize=thread -Wno-tsan

# Only these know what they were built with; everything else is compiled once per variant. In objects/, beside programs.
CHOSEN := $(filter $(ROOT)/csrc/digest/% $(ROOT)/csrc/disk/codec.cpp $(ROOT)/csrc/disk/io_uring.cpp,$(SOURCES))
object = $(patsubst $(ROOT)/csrc/%.cpp,$(OUT)/$(1)/%.o,$(2))
core = $(call object,$(1),$(filter-out $(CHOSEN),$(SOURCES))) \
       $(call object,$(or $(DIGESTS_OF_$(1)),$(1))-$(WITH)/objects,$(filter $(ROOT)/csrc/digest/%,$(CHOSEN))) \
       $(call object,$(1)-$(WITH)/objects,$(filter-out $(ROOT)/csrc/digest/%,$(CHOSEN)))

# What nearly every source includes of the standard library is parsed once per variant. The project's own build has no such help, and so
# notices an include that is missing.
STANDARD := algorithm array atomic chrono condition_variable cstring deque functional map memory mutex optional set span string \
            string_view thread unordered_map vector

# $(1) variant, $(2) compiler, $(3) a source that several programs are linked with. Full paths: other folders use the object as well.
define support
$(OUT)/$(1)-$(WITH)/support/$(notdir $(3:.cpp=.o)): $(3) $(HEADERS)
	@mkdir -p $$(@D)
	$(2) $(COMMON) $(FLAGS_$(1)) -MMD -c $$< -o $$@
endef

# $(1) variant, $(2) compiler, $(3) flags for linking a program only, $(4) more sources of every program
define variant
$(OUT)/$(1)/standard.h.gch: $(ROOT)/tests/native/core.mk
	@mkdir -p $$(@D)
	@printf '#include <%s>\n' $(STANDARD) > $$(@:.gch=)
	$(2) $(COMMON) $(FLAGS_$(1)) -x c++-header $$(@:.gch=) -o $$@
$(OUT)/$(1)/%.o $(OUT)/$(1)-$(WITH)/objects/%.o: $(ROOT)/csrc/%.cpp | $(OUT)/$(1)/standard.h.gch
	@mkdir -p $$(@D)
	$(2) $(COMMON) $(FLAGS_$(1)) -include $(OUT)/$(1)/standard.h -MMD -c $$< -o $$@
$(foreach s,$(4),$(eval $(call support,$(1),$(2),$(abspath $(s)))))
$(foreach p,$(PROGRAMS),$(OUT)/$(1)-$(WITH)/$(p)): $(OUT)/$(1)-$(WITH)/%: $(HERE)/%.cpp $(HEADERS) \
    $(patsubst %.cpp,$(OUT)/$(1)-$(WITH)/support/%.o,$(notdir $(4))) $(call core,$(1))
	@mkdir -p $$(@D)
	$(2) $(COMMON) $(FLAGS_$(1)) $(3) $$(filter %.cpp %.o,$$^) $(LIBRARIES) -o $$@
-include $(patsubst %.o,%.d,$(call core,$(1)) $(patsubst %.cpp,$(OUT)/$(1)-$(WITH)/support/%.o,$(notdir $(4))))
endef
