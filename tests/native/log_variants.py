"""Every form of a log line about a GPU that the parser must know, in the project's own words and the driver's format.

Each row: a name, the message without any prefix, and what must be found in it. Facts may be more than those named here.
Forms: NVIDIA/open-gpu-kernel-modules (595.45.04) and the logs of older drivers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

UUID = "GPU-5a3c1b7e-0d42-9f11-8c66-2b90aa71fe03"


@dataclass(frozen=True)
class Variant:
    name: str
    line: str
    what: str
    code: int = -1
    bdf: str = ""
    gi: int = -1
    ci: int = -1
    pid: int = -1
    uuid: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def xid(name: str, line: str, code: int, bdf: str = "", **more: object) -> Variant:
    known = {key: more.pop(key) for key in ("gi", "ci", "pid") if key in more}
    facts = {key: str(value) for key, value in more.items()}
    return Variant(name, line, "xid", code, bdf, facts=facts, **known)  # type: ignore[arg-type]


NVL5 = "(0x004505c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"

XIDS = (
    xid("no PCI, oldest", "NVRM: Xid (0000:03:00): 14, Channel 00000001", 14, "0000:03:00"),
    xid("no domain", "NVRM: Xid (03:00): 8, Channel 00000001", 8, "0000:03:00"),
    xid("plain", "NVRM: Xid (PCI:0000:65:00): 48, An uncorrectable double bit error (DBE) has been detected on GPU", 48, "0000:65:00"),
    xid("unknown process, quoted", "NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        79, "0000:18:00", pid_unknown=1),
    xid("unknown process", "NVRM: Xid (PCI:0000:18:00): 79, pid=<unknown>, name=<unknown>, GPU has fallen off the bus.", 79,
        "0000:18:00", pid_unknown=1),
    xid("process and channel", "NVRM: Xid (PCI:0000:4f:00): 43, pid=48213, name=python3, Ch 0000000a", 43, "0000:4f:00", pid=48213,
        process="python3", channel="0000000a"),
    xid("caused by another", "NVRM: Xid (PCI:0000:4f:00): 45, pid=48213, name=python3, Ch 0000000b caused by previous Xid 48", 45,
        "0000:4f:00", pid=48213, process="python3", channel="0000000b", previous_xid=48),
    xid("process without a name", "NVRM: Xid (PCI:0000:4f:00): 94, pid=7194, Contained: SM (0x1). RST: No, D-RST: No", 94, "0000:4f:00",
        pid=7194),
    xid("name with a comma", "NVRM: Xid (PCI:0000:4f:00): 43, pid=512, name=a,b, c, Ch 00000008", 43, "0000:4f:00", pid=512,
        process="a,b, c", channel="00000008"),
    xid("name with spaces and parentheses", "NVRM: Xid (PCI:0000:4f:00): 43, pid=512, name=tmux: (client), Ch 00000008", 43,
        "0000:4f:00", pid=512, process="tmux: (client)", channel="00000008"),
    xid("name with colons", "NVRM: Xid (PCI:0000:4f:00): 13, pid=99, name=ray::WorkerDict, Graphics SM Warp Exception on "
        "(GPC 1, TPC 3, SM 0): Out Of Range Address", 13, "0000:4f:00", pid=99, process="ray::WorkerDict", gpc=1, tpc=3, sm=0),
    xid("MIG GPU instance", "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 31, pid=77, name=train, Ch 00000003", 31, "0000:01:00", gi=5,
        pid=77, process="train"),
    xid("MIG compute instance", "NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:00): 43, pid=77, name=train, Ch 00000003", 43,
        "0000:01:00", gi=5, ci=0, pid=77),
    xid("NVLink 5", f"NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 {NVL5}", 149, "0018:01:00",
        unit="NETIR_LINK_EVT", severity="Fatal", xc="0", injected="0", link="08", intr_info="0x004505c6", error_status="0x00000000"),
    xid("NVLink 5, many spaces", f"NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0  Link  08   {NVL5}", 149,
        "0018:01:00", unit="NETIR_LINK_EVT", link="08", intr_info="0x004505c6"),
    xid("NVLink 5, tabs", f"NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT\tFatal\tXC0 i0\tLink 08\t{NVL5}", 149, "0018:01:00",
        unit="NETIR_LINK_EVT", severity="Fatal", link="08", error_status="0x00000000"),
    xid("NVLink 5 of a process", "NVRM: Xid (PCI:0008:01:00): 145, pid=1301, name=ray::WorkerDict, RLW_REMAP  Nonfatal XC1 i1 Link 03 "
        "(0x00000082 0x00000010 0x00000001 0x00000002 0x00000003 0x00000004 0x00000005)", 145, "0008:01:00", pid=1301,
        process="ray::WorkerDict", unit="RLW_REMAP", severity="Nonfatal", xc="1", injected="1", link="03", intr_info="0x00000082",
        error_status="0x00000010", debug="0x00000001 0x00000002 0x00000003 0x00000004 0x00000005"),
    xid("NVLink 5 without a link", f"NVRM: Xid (PCI:0018:01:00): 150, MSE Nonfatal XC0 i0 Link -1 {NVL5}", 150, "0018:01:00", link="-1"),
    xid("recovery action", "NVRM: Xid (PCI:0000:9b:00): 154, pid=51, name=cache_mgr_main, GPU recovery action changed from 0x0 (None) "
        "to 0x1 (GPU Reset Required)", 154, "0000:9b:00", pid=51, old_action="0x0", old_text="None", new_action="0x1",
        new_text="GPU Reset Required"),
    xid("recovery action over", "NVRM: Xid (PCI:0000:9b:00): 154, GPU recovery action changed from 0x4 (Drain and Reset) to 0x0 (None)",
        154, "0000:9b:00", old_action="0x4", new_action="0x0", new_text="None"),
    xid("no trailing comma", "NVRM: Xid (PCI:0000:65:00): 63", 63, "0000:65:00"),
    xid("address with a function", "NVRM: Xid (PCI:0000:b3:00.0): 79, GPU has fallen off the bus.", 79, "0000:b3:00"),
    xid("upper case", "NVRM: Xid (PCI:0000:B3:0A): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14"
        "(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)", 74, "0000:b3:0a", link=14, registers="0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0"),
    xid("domain of five digits", "NVRM: Xid (PCI:10000:E1:00): 31, pid=8, name=x, Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS "
        "GPCCLIENT_T1_8 faulted @ 0x73ac_1c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE", 31, "10000:e1:00", pid=8,
        channel="00000010", engine="GRAPHICS", address="0x73ac_1c000000", fault="FAULT_PDE", access="ACCESS_TYPE_VIRT_WRITE"),
    xid("driver's name twice", "NVRM: NVRM: Xid (PCI:0001:00:00.0): 79, GPU has fallen off the bus.", 79, "0001:00:00"),
    xid("tracepoint", "Xid (PCI:0000:75:00.0): 172, Uncorrectable SRAM error", 172, "0000:75:00"),
    xid("GSP timeout", "NVRM: Xid (PCI:0000:9b:00): 119, pid=2290, name=nvidia-smi, Timeout after 6s of waiting for RPC response from "
        "GPU4 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801813 0x4c).", 119, "0000:9b:00", pid=2290, process="nvidia-smi",
        gpu=4, function=76),
    xid("rows", "NVRM: Xid (PCI:0000:1b:00): 63, pid=3, name=kworker/0:1, Row Remapper: New row marked for remapping, reset gpu to "
        "activate.", 63, "0000:1b:00", pid=3, process="kworker/0:1"),
    xid("unreadable device", "NVRM: Xid (PCI:?): 62, 0000(0000) 00000000 00000000", 62),
)  # fmt: skip


def sxid(name: str, line: str, code: int, bdf: str, **facts: object) -> Variant:
    return Variant(name, line, "sxid", code, bdf, facts={k: str(v) for k, v in facts.items()})


SXIDS = (
    sxid("fatal with a link", "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Fatal, Link 32 LTSSM Fault Up (First)", 20034,
         "0000:86:00", switch=3, severity="fatal", link=32, first=1),
    sxid("non-fatal with a link", "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 46 egress non-posted PRIV error",
         12028, "0000:c1:00", switch=0, severity="non-fatal", link=46),
    sxid("correctable", "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 19047, Correctable, Link 05 single bit error", 19047, "0000:c1:00",
         severity="correctable", link="05"),
    sxid("fatal with an instance", "nvidia-nvswitch1: SXid (PCI:0000:c2:00.0): 25006, Fatal, XBAR tileout fault, instance=4, chiplet=1",
         25006, "0000:c2:00", severity="fatal", instance=4, chiplet=1),
    sxid("non-fatal with an instance", "nvidia-nvswitch1: SXid (PCI:0000:c2:00.0): 24007, Non-fatal, sourcetrack, instance=0, chiplet=2",
         24007, "0000:c2:00", severity="non-fatal", instance=0, chiplet=2),
    sxid("device as a whole", "nvidia-nvswitch2: SXid (PCI:0000:c3:00.0): 10004, NVSWITCH Temperature 105C | TSENSE WARN Threshold 103C",
         10004, "0000:c3:00", switch=2),
    sxid("a small code", "nvidia-nvswitch2: SXid (PCI:0000:c3:00.0): 00210, Fatal, IO failure", 210, "0000:c3:00", severity="fatal"),
    sxid("tracepoint", "SXid (PCI:0000:c3:00.0): 22013, Fatal, Link 60 Minion Link DLREQ interrupt (First)", 22013, "0000:c3:00",
         severity="fatal", link=60, first=1),
)  # fmt: skip
SXID_DETAILS = (
    "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Severity 1 Engine instance 32 Sub-engine instance 00",
    "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Data {0x00000032, 0x00000032, 0x00000000, 0x00000032, 0x80000032, 0x00000000}",
)

PROBE_FAILURE = (
    "NVRM: The NVIDIA GPU 0000:b3:00.0",
    "NVRM: (PCI ID: 10de:26b5) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)

OTHERS = (
    Variant("lost GPU", "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", "fallen_off_bus", bdf="0000:18:00"),
    Variant("lost GPU by PCI", "NVRM: GPU at PCI:0000:18:00: GPU has fallen off the bus.", "fallen_off_bus", bdf="0000:18:00"),
    Variant("lost GPU by number", "NVRM: GPU 3: has fallen off the bus.", "fallen_off_bus", facts={"gpu": "3"}),
    Variant("probe failure as one", "\n".join(PROBE_FAILURE), "fallen_off_bus", bdf="0000:b3:00", facts={"pci_id": "10de:26b5"}),
    Variant("probe failure, name once", "\n".join(PROBE_FAILURE).replace("\nNVRM:", "\n"), "fallen_off_bus", bdf="0000:b3:00"),
    Variant("name of a GPU", f"NVRM: GPU at PCI:0000:9b:00: {UUID}", "gpu_uuid", bdf="0000:9b:00", uuid=UUID),
    Variant("serial number", "NVRM: GPU Board Serial Number: 1654922001234", "board_serial", facts={"serial": "1654922001234"}),
    Variant("GSP lines rationed", "NVRM: Rate limiting GSP RPC error prints for GPU at PCI:0000:9b:00 (printing 1 of every 30). "
            "The GPU likely needs to be reset.", "gsp_rate_limited", bdf="0000:9b:00"),
    Variant("GSP timeout alone", "NVRM: _kgspLogXid119: ********************************* GSP Timeout ***************************",
            "gsp_timeout"),
    Variant("reset required", "NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062) "
            "returned from gpuStateLoad(pGpu) @ osinit.c:1200", "reset_required"),
    Variant("link mask", "NVRM: knvlinkDiscoverPostRxDetLinks_GH100: Getting peer0's postRxDetLinkMask failed!", "link_mask_failed"),
    Variant("peermem", "nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further processing",
            "peermem_invalid_context"),
    Variant("driver", "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  595.45.04  Release Build  (root@b)", "driver_loaded",
            facts={"version": "595.45.04"}),
    Variant("closed driver", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
            "driver_loaded", facts={"version": "535.104.05"}),
    Variant("crash in NCCL", "pt_nccl_heartbt[4012]: segfault at 7f0b8c000010 ip 00007f0c1d2e3f40 sp 00007f0bcfffe8d0 error 4 in "
            "libnccl.so.2.21.5[7f0c1a000000+c000000]", "segfault", pid=4012,
            facts={"process": "pt_nccl_heartbt", "library": "libnccl.so.2.21.5", "address": "7f0b8c000010"}),
    Variant("crash in CUDA", "traps: python3[311] general protection fault ip:7f1c2d3e4f50 sp:7ffc0a0b0c00 error:0 in "
            "libcuda.so.595.45.04[7f1c2d000000+1a00000]", "segfault", pid=311, facts={"process": "python3"}),
    Variant("hung task", "INFO: task python3:48213 blocked for more than 120 seconds.", "hung_task", pid=48213,
            facts={"process": "python3", "seconds": "120"}),
    Variant("hung task with colons", "INFO: task kworker/u64:3:912 blocked for more than 241 seconds.", "hung_task", pid=912,
            facts={"process": "kworker/u64:3", "seconds": "241"}),
    Variant("fabric manager, fatal", "[Jul 23 2024 07:53:55] [ERROR] [tid 841] detected NVSwitch fatal error 20034 on fid 0 on NVSwitch "
            "pci bus id 00000000:86:00.0 physical id 3 port 33", "fabric_sxid", 20034, "0000:86:00",
            facts={"severity": "fatal", "fid": "0", "link": "33"}),
    Variant("fabric manager, non-fatal", "[Jul 23 2024 07:53:55] [ERROR] [tid 841] detected NVSwitch non-fatal error 12028 on fid 0 on "
            "NVSwitch pci bus id 00000000:C1:00.0 physical id 0 port 61", "fabric_sxid", 12028, "0000:c1:00",
            facts={"severity": "non-fatal", "link": "61"}),
    Variant("fabric manager, handle", "[Jul 23 2024 07:53:55] [ERROR] [tid 12] failed to find the GPU handle 5410063385821516767 in the "
            "multicast team request setup 6130285411925746235.", "fabric_handle", facts={"gpu": "5410063385821516767"}),
    Variant("fabric manager, topology", "[Jul 23 2024 07:53:55] [ERROR] [tid 12] detected number of NVSwitches don't match with any "
            "supported system topology, aborting fabric manager", "fabric_topology"),
    Variant("fabric manager, nothing to do", "[Jul 23 2024 07:53:55] [ERROR] [tid 12] request to query NVSwitch device information from "
            "NVSwitch driver failed with error:WARNING Nothing to do [NV_WARN_NOTHING_TO_DO]", "fabric_healthy"),
)  # fmt: skip

VARIANTS = XIDS + SXIDS + OTHERS

FOREIGN = (
    "",
    "NVRM: ",
    "NVRM: RmInitAdapter succeeded",
    "usb 1-1: new high-speed USB device number 2 using xhci_hcd",
    "Xid",
    "Xid (",
    "Xid ()",
    "Xid (PCI:0000:01:00):",
    "Xid (PCI:0000:01:00): no number",
    "fooXid (PCI:0000:01:00): 79",
    "python3[77]: segfault at 0 ip 0 sp 0 error 4 in libc.so.6[7f00+100]",
    "NVRM: The NVIDIA GPU 0000:b3:00.0 (PCI ID: 10de:0fc6) installed in this system is not supported by the 595.45.04 driver",
    "NVRM: GPU at PCI:0000:9b:00: GPU-5a3c",
    "EXT4-fs (sda1): mounted filesystem with ordered data mode",
)
